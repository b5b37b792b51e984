"""What compiling costs and how compiled code behaves in a process: caches, threads, forks, operators."""

import contextlib
import errno
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import CIFAR, pictures, same_bits

from fastcifar.kernels import Augmentation, augment_batch, draw_plan, ops

AUGMENTATION = Augmentation(crop_padding=2, flip="random", cutmix=1.0, rotation=10, mix_per="image")


def _python(code: str, **environment: str) -> str:
    """Output of a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def _batch(**options):
    return augment_batch(pictures(30, 8, 8), range(30), AUGMENTATION, CIFAR, seed=1, epoch=1, **options)[0]


@pytest.mark.parametrize(
    "code",
    [
        "from fastcifar import kernels; kernels.prepare(torch.device('cpu'))",
        "from fastcifar.bench.bounds import use_numba_threads; use_numba_threads()",
    ],
)
def test_torch_keeps_its_number_of_threads(code):
    code = f"import torch; torch.set_num_threads(1); {code}; print(torch.get_num_threads())"
    assert _python(code, NUMBA_NUM_THREADS="3") == "1\n"


def test_a_second_process_compiles_nothing():
    _batch(num_threads=2)  # the first process, where this is run alone
    code = """
import json, numpy as np
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, found): pass
    def on_end(self, found): compiled.append(found.data["dispatcher"].py_func.__name__)
event.register("numba:compile", Listener())
from fastcifar.kernels import Augmentation, Normalisation, augment_batch, epoch_order
for num_threads in (1, 2):
    augment_batch(np.zeros((4, 8, 8, 3), np.uint8), [1, 2], Augmentation(cutmix=1.0, rotation=3),
                  Normalisation.identity(), seed=0, epoch=0, num_threads=num_threads)
epoch_order(10, 0, 0)
from fastcifar.kernels import numba_draw, numba_pixels, numba_share, numba_task
functions = numba_share.alone, numba_share.in_parallel, numba_task.scratch_bytes
hits = [sum(function.stats.cache_hits.values()) for function in functions]
callbacks = [callback.cache_hits for callback in (numba_draw.draw, numba_pixels.augment)]
print(json.dumps([compiled, hits, callbacks, [len(function.signatures) for function in functions]]))
"""
    compiled, hits, callbacks, signatures = json.loads(_python(code))
    assert compiled == []
    assert hits == [1] * 3
    assert callbacks == [1] * 2
    assert signatures == [1] * 3


def test_importing_the_package_imports_nothing_heavy():
    code = """
import sys
import fastcifar.kernels
from fastcifar.kernels import Augmentation, Normalisation
Augmentation(), Normalisation.identity()
print([name for name in ("numba", "torch", "scipy", "numpy", "llvmlite") if name in sys.modules])
"""
    assert _python(code).strip() == "[]"


def test_the_reference_needs_no_numba():
    code = """
import sys
sys.modules["numba"] = None
from fastcifar.kernels import dispatch
dispatch.has_numba = lambda: False
import numpy as np
from fastcifar.kernels import Augmentation, Normalisation, augment_batch, epoch_order
images, normalisation = np.ones((4, 8, 8, 3), np.uint8), Normalisation.identity()
batch = augment_batch(images, [1], Augmentation(), normalisation, seed=0, epoch=0)[0]
print(batch.shape, len(epoch_order(5, 0, 0)))
"""
    assert _python(code).split() == ["torch.Size([1,", "3,", "8,", "8])", "5"]


def test_stale_code_is_not_used_after_a_change_elsewhere():
    """Numba keys its cache by a function's own file; ours is keyed by all of them."""
    from fastcifar.kernels import numba_jit

    names = {path.name for path in numba_jit.sources("numba_*.py")}
    assert {"numba_pixels.py", "numba_vector.py", "numba_draw.py", "plan.py", "reference.py"} <= names
    assert names >= {path.name for path in Path(numba_jit.__file__).parent.glob("numba_*.py")}
    cell = numba_jit.stamped(lambda: None).__closure__[0].cell_contents
    assert cell == numba_jit.digest_of()


def _doubled(x):
    return 2 * x


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "another module", "data"])
def test_a_damaged_cache_is_compiled_anew(tmp_path, monkeypatch, damage):
    import numba

    from fastcifar.kernels import numba_jit

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def hits():
        function = numba_jit.jit(_doubled, "int64(int64)")
        assert function(21) == 42
        return sum(function.stats.cache_hits.values())

    assert [hits(), hits()] == [0, 1]
    (index,), (data,) = tmp_path.rglob("*.nbi"), tmp_path.rglob("*.nbc")
    whole = index.read_bytes()
    if damage == "data":
        data.write_bytes(data.read_bytes()[:-20])
    else:
        gone = pickle.dumps(numba.__version__, protocol=-1) + b"cfastcifar.gone\nClass\n."
        index.write_bytes({"empty": b"", "cut": whole[:-9], "noise": b"\x93" * 99, "another module": gone}[damage])
    assert [hits(), hits()] == [0, 1]


def test_without_room_for_a_cache_code_is_compiled_all_the_same(tmp_path, monkeypatch):
    from numba import config
    from numba.core.caching import CacheImpl, IndexDataCacheFile

    from fastcifar.kernels import numba_jit

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(IndexDataCacheFile, "_open_for_write", full)
        assert numba_jit.jit(_doubled, "int64(int64)")(21) == 42
    with monkeypatch.context() as patched:
        patched.setattr(CacheImpl, "_locator_classes", [])
        assert numba_jit.jit(_doubled, "int64(int64)")(21) == 42
    assert not list(tmp_path.rglob("*.nb*"))


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_results_do_not_depend_on_threads(layer):
    code = """
import threading, numpy as np, torch
from fastcifar.kernels import Augmentation, Normalisation, augment_batch
import numba
images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
settings = dict(crop_padding=2, flip="random", cutmix=1.0, mixup=1.0, mix_per="image", rotation=9)
def run(num_threads):
    return augment_batch(images, range(64), Augmentation(**settings), Normalisation.identity(), seed=0, epoch=0,
                         num_threads=num_threads)[0]
one = run(1)
results = []
threads = [threading.Thread(target=lambda: results.extend(run(n) for n in (2, 4, 3, 4) * 5)) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(numba.threading_layer(), len(results), all(torch.equal(one, result) for result in results))
"""
    wanted = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4", "OMP_NUM_THREADS": "4"}
    assert _python(code, **wanted).split() == [layer, "60", "True"]


def test_several_python_threads_at_once():
    expected = _batch(num_threads=1)
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(_batch(num_threads=1) for _ in range(20))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert all(same_bits(result, expected) for result in results)


def test_a_forked_process_may_use_one_thread():
    code = """
import os, numpy as np
from fastcifar.kernels import Augmentation, Normalisation, augment_batch
images = np.ones((64, 8, 8, 3), np.uint8)
def run(num_threads):
    augment_batch(images, range(64), Augmentation(), Normalisation.identity(), seed=0, epoch=0, num_threads=num_threads)
run(2)
child = os.fork()
if child == 0:
    run(1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert _python(code, PYTHONWARNINGS="ignore").strip() == "0"


def _op_arguments():
    images = torch.from_numpy(pictures(9, 8, 6))
    rows = torch.tensor([3, 1, 8, 0])
    plan = draw_plan(AUGMENTATION, seed=1, epoch=2, indices_n=rows, height=8, width=6)
    return images, rows, torch.from_numpy(plan.ints_nk), torch.from_numpy(plan.floats_nk)


@pytest.mark.parametrize("form", ["reference", "numba"])
def test_opcheck(form):
    images, rows, ints, floats = _op_arguments()
    scales = ([0.5] * 3, [0.2] * 3)
    torch.library.opcheck(
        torch.ops.fastcifar.augment, (images, rows, ints, floats, "reflect", *scales, torch.bfloat16, form)
    )
    amounts = [1.0, 0.0, 1.0, 0.5, 0.0, 0.0, 10.0, 0.0, 0.0]
    torch.library.opcheck(
        torch.ops.fastcifar.augment_batch,
        (images, rows, rows, [2, 0], "reflect", "random", "image", amounts, *scales, 1, 2, torch.float16, form),
    )


def test_operators_compile_without_a_break():
    images, rows, ints, floats = _op_arguments()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(images, rows, epoch):
        batch, weights, partners = ops.augment_batch(
            images, rows, AUGMENTATION, CIFAR, seed=1, epoch=epoch, dtype=torch.float32
        )
        planned = ops.augment(images, rows, ints, floats, CIFAR, dtype=torch.float32)
        return batch.relu(), weights, partners, planned

    for epoch in (2, 3, 4):
        batch, weights, partners, planned = step(images, rows, epoch)
        expected, expected_weights, expected_partners = augment_batch(
            images, rows, AUGMENTATION, CIFAR, seed=1, epoch=epoch, dtype=torch.float32
        )
        assert torch.equal(batch, expected.relu())
        assert torch.equal(weights, expected_weights)
        assert torch.equal(partners, expected_partners)
        assert torch.equal(planned, expected) == (epoch == 2)


def test_operators_give_weights_of_one_without_mixing():
    images, rows, _, _ = _op_arguments()
    _, weights, partners = ops.augment_batch(images, rows, Augmentation(), CIFAR, seed=0, epoch=0)
    assert weights.tolist() == [1.0] * 4
    assert partners.tolist() == [1, 2, 3, 0]


def test_default_is_torchs_number_of_threads(monkeypatch):
    from fastcifar.kernels import threads

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert threads.num_tasks_for(100, None) == 1
    assert threads.num_tasks_for(1, 8) == 1
    assert threads.num_tasks_for(0, 8) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_numbas_number_of_threads_stays_the_callers(monkeypatch, fails):
    from fastcifar.kernels import threads

    told, within = [3], []
    monkeypatch.setattr(threads, "get_num_threads", lambda: told[-1])
    monkeypatch.setattr(threads, "set_num_threads", told.append)

    def parallel(num_tasks):
        within.append((num_tasks, told[-1]))
        if fails:
            raise MemoryError

    with contextlib.suppress(MemoryError):
        threads.run_parallel(parallel, 2)
    assert within == [(2, 2)]
    assert told == [3, 2, 3]


def test_a_batch_leaves_numbas_number_of_threads_as_it_was():
    code = """
import numba, numpy as np
from fastcifar.kernels import Augmentation, Normalisation, augment_batch
numba.set_num_threads(3)
augment_batch(np.zeros((4, 8, 8, 3), np.uint8), range(4), Augmentation(), Normalisation.identity(), seed=0, epoch=0,
              num_threads=2)
print(numba.get_num_threads())
"""
    assert _python(code, NUMBA_NUM_THREADS="4").strip() == "3"


def test_arrays_of_rows_are_not_changed():
    rows = np.array([3, 1, 2])
    augment_batch(pictures(4, 8, 8), rows, AUGMENTATION, CIFAR, seed=0, epoch=0)
    assert rows.tolist() == [3, 1, 2]
