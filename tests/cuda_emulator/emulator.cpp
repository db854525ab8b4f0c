#include "emulator.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>

#if !defined(__x86_64__)
#error "the emulator switches stacks by hand, for x86-64 only"
#endif

// Saves the callee's registers and the stack pointer of the running fiber, and goes on where the other one stopped.
extern "C" void p3m_switch(void** save, void* load);
asm(R"(
.text
.globl p3m_switch
.type p3m_switch, @function
p3m_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size p3m_switch, .-p3m_switch
)");

namespace emulator {

Thread* self = nullptr;
dim3 block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = 256 * 1024;

struct Fiber : Thread {
  void* stack = nullptr;
  void* pointer = nullptr;
  bool done = false;
};

// Lanes that meet under one mask. A lane can be two meetings ahead of none, so two sets of slots are enough.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  uint64_t generation = 0;
  uint64_t slots[2][32];
};

struct State {
  std::vector<Fiber> fibers;
  std::vector<std::vector<std::unique_ptr<Meeting>>> meetings;  // of each warp
  std::vector<unsigned> left;                                   // lanes of each warp that have returned
  std::vector<unsigned char> shared;
  const std::function<void()>* body = nullptr;
  void* scheduler = nullptr;
  size_t alive = 0, waiting = 0;
  uint64_t barrier = 0;
  int votes = 0, result = 0;
  bool progress = false;
};

State state;
std::recursive_mutex one_launch;

Fiber& current() { return *static_cast<Fiber*>(self); }

void yield() { p3m_switch(&current().pointer, state.scheduler); }

void release_barrier_if_complete() {
  if (state.alive == 0 || state.waiting < state.alive) return;
  state.result = state.votes;
  state.votes = 0;
  state.waiting = 0;
  ++state.barrier;
  state.progress = true;
}

void enter() {
  (*state.body)();
  Fiber& fiber = current();
  for (const auto& group : fiber.copies)
    if (!group.empty()) fail("a thread returns while a copy that it started is under way");
  fiber.done = true;
  state.left[fiber.warp] |= 1u << fiber.lane;
  --state.alive;
  state.progress = true;
  release_barrier_if_complete();
  yield();
  std::abort();
}

void prepare(Fiber& fiber, unsigned linear) {
  if (!fiber.stack) {
    fiber.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber.stack == MAP_FAILED) fail("no memory for the stacks of a block");
  }
  fiber.index =
      dim3(linear % block_size.x, linear / block_size.x % block_size.y, linear / (block_size.x * block_size.y));
  fiber.lane = linear % 32;
  fiber.warp = linear / 32;
  fiber.copies.clear();
  fiber.done = false;
  auto** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + kStack);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.pointer = top;
}

void run_block(std::vector<size_t>& order, size_t threads) {
  static std::mt19937 generator(0);
  const char* wanted = std::getenv("P3M_EMULATOR_ORDER");
  const std::string name = wanted ? wanted : "forward";
  std::iota(order.begin(), order.end(), 0);
  if (name == "reverse") std::reverse(order.begin(), order.end());
  else if (name == "random") std::shuffle(order.begin(), order.end(), generator);
  else if (name != "forward") fail("P3M_EMULATOR_ORDER must be forward, reverse or random");

  for (size_t i = 0; i < threads; ++i) prepare(state.fibers[i], static_cast<unsigned>(i));
  state.meetings.clear();
  state.meetings.resize((threads + 31) / 32);
  state.left.assign((threads + 31) / 32, 0);
  state.alive = threads;
  state.waiting = 0;
  state.votes = 0;
  // Shared memory starts with anything on a GPU; here with NaNs, which show.
  std::fill(state.shared.begin(), state.shared.end(), 0xff);
  while (state.alive) {
    state.progress = false;
    for (const size_t i : order) {
      Fiber& fiber = state.fibers[i];
      if (fiber.done) continue;
      self = &fiber;
      p3m_switch(&state.scheduler, fiber.pointer);
    }
    if (!state.progress)
      fail("threads wait for each other for ever: a barrier or warp function that some of them never reach");
  }
  self = nullptr;
}

}  // namespace

void fail(const char* message) {
  std::fprintf(stderr, "cuda emulator: %s", message);
  if (self)
    std::fprintf(stderr, " (block %u,%u,%u thread %u,%u,%u)", block_index.x, block_index.y, block_index.z,
                 self->index.x, self->index.y, self->index.z);
  std::fprintf(stderr, "\n");
  std::abort();
}

void* dynamic_shared() {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(state.shared.data()) + 127) / 128 * 128);
}

int block_barrier(int vote) {
  const uint64_t barrier = state.barrier;
  state.votes += vote;
  ++state.waiting;
  release_barrier_if_complete();
  while (state.barrier == barrier) yield();
  return state.result;
}

const uint64_t* exchange(unsigned mask, uint64_t value) {
  const unsigned lane = self->lane, bit = 1u << lane;
  if (!(mask & bit)) fail("a warp function's mask does not name the lane that calls it");
  const size_t in_warp = std::min<size_t>(32, size_t{block_size.x} * block_size.y * block_size.z - 32 * self->warp);
  const unsigned exist = in_warp == 32 ? ~0u : (1u << in_warp) - 1;
  auto& meetings = state.meetings[self->warp];
  auto found = std::find_if(meetings.begin(), meetings.end(), [&](const auto& m) { return m->mask == mask; });
  if (found == meetings.end()) {
    meetings.push_back(std::make_unique<Meeting>());
    meetings.back()->mask = mask;
    found = meetings.end() - 1;
  }
  Meeting& meeting = **found;
  const uint64_t generation = meeting.generation;
  uint64_t* slots = meeting.slots[generation % 2];
  slots[lane] = value;
  meeting.arrived |= bit;
  if (mask & (state.left[self->warp] | ~exist))
    fail("a warp function's mask names a lane that has returned or does not exist");
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.generation;
    state.progress = true;
  }
  while (meeting.generation == generation) yield();
  return slots;
}

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::recursive_mutex> guard(one_launch);
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024) fail("a block must have 1 to 1024 threads");
  if (shared_bytes > 227 * 1024) fail("more than 227 KB of shared memory");
  state.shared.assign(shared_bytes + 128, 0xff);
  if (state.fibers.size() < threads) state.fibers.resize(threads);
  state.body = &body;
  block_size = block;
  grid_size = grid;
  std::vector<size_t> order(threads);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        run_block(order, threads);
      }
}

}  // namespace emulator
