weight = None  # path of a checkpoint to start from (.pth or .safetensors)
resume = False  # True continues the run in save_path; or the path of a checkpoint
evaluate = True  # evaluate after each of the eval_epoch rounds
test_only = False
seed = None  # None draws one; it stands in metrics.json
deterministic = False  # refuse operations whose result varies from run to run (slower on a GPU)
save_path = "exp/default"
num_worker = 16  # loader processes, of all training processes together
worker_timeout = 600  # seconds without a batch after which the loader is stuck
batch_size = 16  # of all training processes together, so are the next two
batch_size_val = None  # None: 1 per process
batch_size_test = None
gradient_accumulation_steps = 1  # batches whose gradients make one update
epoch = 100  # passes over the data
eval_epoch = 100  # rounds of epoch // eval_epoch passes, an evaluation after each
clip_grad = None  # largest norm of the gradient
sync_bn = False
enable_amp = False
amp_dtype = "float16"  # or "bfloat16", which a CPU can do too
empty_cache = False
empty_cache_per_epoch = False
find_unused_parameters = False
dist_timeout = 180  # seconds that a process waits for another one

enable_wandb = False  # needs an account; everything is in save_path without it
wandb_project = "pointcept3m"
wandb_key = None

mix_prob = 0  # Mix3D
param_dicts = None  # [dict(keyword="block", lr=1e-4)]: parameters whose name contains the keyword
task = None  # the word in metrics.json; None: what the model or the tester says

hooks = [
    dict(type="CheckpointLoader"),
    dict(type="ModelHook"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=False),
    dict(type="MetricsWriter"),
]

train = dict(type="DefaultTrainer")
test = dict(type="SemSegTester", verbose=True)
