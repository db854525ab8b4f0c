// Graph-based over-segmentation of a mesh (Felzenszwalb and Huttenlocher 2004, with the weights of ScanNet's
// Segmentator): normals and the joining take things in their order, as their results depend on it; the weights are
// computed and sorted by all threads.
#include "common/exact_math.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/check.h"
#include "common/radix_sort.h"

namespace pointcept3m {
namespace {

constexpr int64_t kEdges = 8192;  // edges of one unit of work

template <class T>
struct Vec {
  T x, y, z;
};
template <class T>
Vec<T> operator-(const Vec<T>& a, const Vec<T>& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class T>
T dot(const Vec<T>& a, const Vec<T>& b) {
  return (a.x * b.x + a.y * b.y) + a.z * b.z;
}
template <class T>
T length(const Vec<T>& a) {
  return std::sqrt(dot(a, a));
}

// A vertex' normal is the mean of its faces' unit normals, taken face by face. Faces without area have none.
template <class T>
std::vector<Vec<T>> vertex_normals(const Vec<T>* vertex, int64_t num_vertices, const int64_t* faces,
                                   int64_t num_faces) {
  std::vector<Vec<T>> normal(num_vertices, Vec<T>{0, 0, 0});
  std::vector<int32_t> count(num_vertices);
  for (int64_t face = 0; face < num_faces; ++face) {
    const int64_t* corner = faces + 3 * face;
    const Vec<T> u = vertex[corner[1]] - vertex[corner[0]], v = vertex[corner[2]] - vertex[corner[0]];
    Vec<T> n{u.y * v.z - u.z * v.y, u.z * v.x - u.x * v.z, u.x * v.y - u.y * v.x};
    const T size = length(n);
    if (!(size > 0 && size <= std::numeric_limits<T>::max())) continue;
    n = {n.x / size, n.y / size, n.z / size};
    for (int k = 0; k < 3; ++k) {
      Vec<T>& mean = normal[corner[k]];
      const T share = T(1) / static_cast<T>(++count[corner[k]]), rest = T(1) - share;
      mean = {share * n.x + rest * mean.x, share * n.y + rest * mean.y, share * n.z + rest * mean.z};
    }
  }
  return normal;
}

// How different the normals of two neighbours are; less where the surface bulges outwards between them.
template <class T>
T edge_weight(const Vec<T>& from, const Vec<T>& to, const Vec<T>& from_normal, const Vec<T>& to_normal) {
  const Vec<T> step = to - from;
  const T size = length(step);
  const Vec<T> direction{step.x / size, step.y / size, step.z / size};
  const T difference = T(1) - dot(from_normal, to_normal);
  return dot(to_normal, direction) > 0 ? difference * difference : difference;
}

// Bits that order as the values do.
template <class T>
uint64_t ordered_bits(T value) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Bits sign = Bits{1} << (8 * sizeof(T) - 1);
  Bits bits;
  std::memcpy(&bits, &value, sizeof(T));
  return bits & sign ? static_cast<Bits>(~bits) : bits | sign;
}

class Segments {
 public:
  explicit Segments(int64_t count) : parent_(count), size_(count, 1) {
    for (int64_t i = 0; i < count; ++i) parent_[i] = static_cast<int32_t>(i);
  }
  int32_t find(int32_t member) {
    while (parent_[member] != member) member = parent_[member] = parent_[parent_[member]];
    return member;
  }
  int32_t size(int32_t root) const { return size_[root]; }
  // Both are roots; returns the one that remains.
  int32_t join(int32_t a, int32_t b) {
    if (size_[a] < size_[b]) std::swap(a, b);
    parent_[b] = a;
    size_[a] += size_[b];
    return a;
  }

 private:
  std::vector<int32_t> parent_, size_;
};

struct Edge {
  int32_t a, b;
};

// Joins over edges in ascending order of weight, and of place among equals.
template <class T>
Tensor segment(const std::vector<Edge>& edges, const std::vector<T>& weight, int64_t num_vertices, double threshold,
               int64_t min_vertices, const Tensor& like) {
  const auto num_edges = static_cast<int64_t>(edges.size());
  Items<Wide> order(num_edges, 8 * sizeof(T), 0);
  for (int64_t i = 0; i < num_edges; ++i) order.now[i] = Wide::make(ordered_bits(weight[i]), i);
  sort_items(order);

  Segments segments(num_vertices);
  const T k = static_cast<T>(threshold);
  std::vector<T> limit(num_vertices, k);
  for (int64_t place = 0; place < num_edges; ++place) {
    const int64_t i = order.now[place].row();
    const T w = weight[i];
    const int32_t a = segments.find(edges[i].a), b = segments.find(edges[i].b);
    if (a == b || !(w <= limit[a] && w <= limit[b])) continue;
    const int32_t root = segments.join(a, b);
    limit[root] = w + k / static_cast<T>(segments.size(root));
  }
  for (int64_t place = 0; place < num_edges; ++place) {
    const Edge& edge = edges[order.now[place].row()];
    const int32_t a = segments.find(edge.a), b = segments.find(edge.b);
    if (a != b && (segments.size(a) < min_vertices || segments.size(b) < min_vertices)) segments.join(a, b);
  }

  const Tensor out = torch::stable::new_empty(like, {num_vertices}, ScalarType::Long);
  int64_t* id = out.mutable_data_ptr<int64_t>();
  std::vector<int32_t> number(num_vertices, -1);
  int32_t count = 0;
  for (int64_t i = 0; i < num_vertices; ++i) {
    int32_t& n = number[segments.find(static_cast<int32_t>(i))];
    if (n < 0) n = count++;
    id[i] = n;
  }
  return out;
}

template <class T>
Tensor segment(const std::vector<Edge>& edges, const Vec<T>* vertex, const Vec<T>* normal, int64_t num_vertices,
               double threshold, int64_t min_vertices, const Tensor& like) {
  const auto num_edges = static_cast<int64_t>(edges.size());
  std::vector<T> weight(num_edges);
  share_units((num_edges + kEdges - 1) / kEdges, [&](int64_t unit) {
    for (int64_t i = unit * kEdges; i < std::min(num_edges, (unit + 1) * kEdges); ++i) {
      const auto [a, b] = edges[i];
      weight[i] = edge_weight(vertex[a], vertex[b], normal[a], normal[b]);
    }
  });
  return segment(edges, weight, num_vertices, threshold, min_vertices, like);
}

void check_vectors(const Tensor& tensor, const char* name) {
  check_contiguous_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) == 3, name, " must have shape [V, 3]");
  const auto dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " must be float32 or float64");
  STD_TORCH_CHECK(tensor.size(0) < std::numeric_limits<int32_t>::max(), name, " must have fewer than 2^31 rows");
}

void check_indices(const Tensor& tensor, int64_t columns, int64_t num_vertices, const char* name) {
  check_contiguous_cpu(tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) == columns && tensor.scalar_type() == ScalarType::Long, name,
                  " must be int64 [rows, ", columns, "]");
  STD_TORCH_CHECK(tensor.size(0) < std::numeric_limits<int32_t>::max() / 3, name,
                  " must have fewer than 2^31 / 3 rows");
  const int64_t* values = tensor.const_data_ptr<int64_t>();
  const int64_t count = tensor.numel();
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside &= static_cast<uint64_t>(values[i]) < static_cast<uint64_t>(num_vertices);
  STD_TORCH_CHECK(inside, name, " names vertices outside [0, V)");
}

template <class T>
const Vec<T>* finite_vectors(const Tensor& tensor, const char* name) {
  const T* values = tensor.const_data_ptr<T>();
  const int64_t count = tensor.numel();
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= std::isfinite(values[i]);
  STD_TORCH_CHECK(finite, name, " must be finite");
  return reinterpret_cast<const Vec<T>*>(values);
}

template <class T>
Tensor segment_mesh_of(const Tensor& vertices, const Tensor& faces, double threshold, int64_t min_vertices) {
  const Vec<T>* vertex = finite_vectors<T>(vertices, "vertices");
  const int64_t* corners = faces.const_data_ptr<int64_t>();
  const int64_t num_faces = faces.size(0);
  const auto normal = vertex_normals(vertex, vertices.size(0), corners, num_faces);
  std::vector<Edge> edges(3 * num_faces);
  for (int64_t face = 0; face < num_faces; ++face) {
    const auto i = static_cast<int32_t>(corners[3 * face]), j = static_cast<int32_t>(corners[3 * face + 1]),
               k = static_cast<int32_t>(corners[3 * face + 2]);
    edges[3 * face] = {i, j}, edges[3 * face + 1] = {i, k}, edges[3 * face + 2] = {k, j};
  }
  return segment(edges, vertex, normal.data(), vertices.size(0), threshold, min_vertices, faces);
}

Tensor segment_mesh(const Tensor& vertices, const Tensor& faces, double threshold, int64_t min_vertices) {
  check_vectors(vertices, "vertices");
  check_indices(faces, 3, vertices.size(0), "faces");
  const bool single = vertices.scalar_type() == ScalarType::Float;
  return (single ? segment_mesh_of<float> : segment_mesh_of<double>)(vertices, faces, threshold, min_vertices);
}

template <class T>
Tensor segment_point_of(const Tensor& vertices, const Tensor& normals, const Tensor& edges, double threshold,
                        int64_t min_vertices) {
  const Vec<T>* vertex = finite_vectors<T>(vertices, "vertices");
  const Vec<T>* normal = finite_vectors<T>(normals, "normals");
  const int64_t* ends = edges.const_data_ptr<int64_t>();
  std::vector<Edge> pairs(edges.size(0));
  for (size_t i = 0; i < pairs.size(); ++i)
    pairs[i] = {static_cast<int32_t>(ends[2 * i]), static_cast<int32_t>(ends[2 * i + 1])};
  return segment(pairs, vertex, normal, vertices.size(0), threshold, min_vertices, edges);
}

Tensor segment_point(const Tensor& vertices, const Tensor& normals, const Tensor& edges, double threshold,
                     int64_t min_vertices) {
  check_vectors(vertices, "vertices");
  check_vectors(normals, "normals");
  STD_TORCH_CHECK(normals.size(0) == vertices.size(0) && normals.scalar_type() == vertices.scalar_type(),
                  "normals must be as vertices are");
  check_indices(edges, 2, vertices.size(0), "edges");
  const bool single = vertices.scalar_type() == ScalarType::Float;
  return (single ? segment_point_of<float> : segment_point_of<double>)(vertices, normals, edges, threshold,
                                                                       min_vertices);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pointcept3m, CPU, m) {
  m.impl("segment_mesh", TORCH_BOX(&segment_mesh));
  m.impl("segment_point", TORCH_BOX(&segment_point));
}

}  // namespace pointcept3m
