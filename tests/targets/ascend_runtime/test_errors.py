"""What CANN refuses becomes a sentence and a status, and nothing leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile import targets
from expertile.targets.ascend.launches import Launch
from expertile.targets.ascend.runtime.library import AclError
from expertile.targets.ascend.target import AscendTarget
from expertile.targets.base import RunFailed

from ..ascend_card import Recorder
from .cases import MARK, silu_launch, tensors


@pytest.mark.parametrize(("function", "code", "says", "status"), [
    ("rtDevBinaryRegister", 507008, "compiled for another chip", "illegal"),
    ("rtFunctionRegister", 507027, "does not have the kernel", "run_error"),
    ("aclrtCreateStream", 107002, "no device was set", "run_error"),
    ("aclrtMalloc", 207001, "out of memory", "oom"),
    ("aclrtMemcpy", 107000, "a parameter is not valid", "run_error"),
    ("rtGetC2cCtrlAddr", 207000, "does not have the feature", "run_error"),
    ("rtKernelLaunch", 107003, "another context's", "run_error"),
    ("aclrtSynchronizeStream", 507035, "the vector core stopped", "illegal"),
    ("aclrtSynchronizeStream", 507014, "time limit", "timeout"),
    ("rtKernelLaunch", 999999, "CANN's list of error codes", "run_error"),
])
def test_every_failing_call_says_what_it_means(home: Path, recorder: Recorder, tmp_path: Path,
                                               function: str, code: int, says: str, status: str
                                               ) -> None:
    recorder.kernel("silu_mul", MARK)
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    x, y = tensors()
    recorder.fail(function, code)
    with pytest.raises(AclError, match=rf"{function} failed with {code}: .*{says}") as raised:
        made.card.launch(silu_launch(made, x, y))
    assert raised.value.status == status and f"says no to {function}" in str(raised.value)
    assert recorder.live == 0 and y.sum() == 0       # nothing leaks, nothing half-written
    recorder.reset()
    made.card.launch(silu_launch(made, x, y))        # and the card goes on
    assert y.sum() != 0


def test_a_second_buffer_that_does_not_fit_frees_the_first(target: AscendTarget, recorder: Recorder
                                                           ) -> None:
    recorder.kernel("silu_mul", MARK)
    x, y = tensors()
    recorder.fail("aclrtMalloc", 207001, after=1)
    with pytest.raises(AclError, match="out of memory"):
        target.card.launch(silu_launch(target, x, y))
    assert recorder.live == 0


def test_a_fault_of_the_kernel_is_its_own(target: AscendTarget, recorder: Recorder) -> None:
    recorder.kernel("silu_mul", "int npu_block(const arguments_t *a, uint32_t b) {return b == 3;}")
    x, y = tensors()
    with pytest.raises(AclError, match="the vector core stopped.*kernel fault 1"):
        target.card.launch(silu_launch(target, x, y))


def test_a_grid_beyond_cann_is_refused(target: AscendTarget, recorder: Recorder) -> None:
    made = silu_launch(target, *tensors())
    with pytest.raises(RunFailed, match="at most 65535 blocks"):
        target.card.launch(Launch(made.program, (256, 256, 1), made.args, made.flags))
