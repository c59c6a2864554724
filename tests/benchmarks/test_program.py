import importlib.util

import jax
import pytest

from asdproto.config import ConfigError
from experiments.benchmarks import program as bench_program

PROGRAM = """\
HloModule jit_epoch, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%short (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  ROOT %t = (s32[]) tuple(%p)
}

%steps (p: (f32[8,4], f16[1000,4], s32[])) -> (f32[8,4], f16[1000,4], s32[]) {
  %p = (f32[8,4]{1,0}, f16[1000,4]{1,0}, s32[]) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=0
  %table = f16[1000,4]{1,0} get-tuple-element(%p), index=1
  %crop = f16[8,4]{1,0} fusion(%table), kind=kLoop, metadata={op_name="jit(f)/gather"}
  %conv = (f32[8,4]{1,0}, u8[4096]{0}) custom-call(%x, %crop), custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/jvp(ResNet)/stem"}
  %y = f32[8,4]{1,0} get-tuple-element(%conv), index=0
  %norm = f32[8,4]{1,0} fusion(%y), kind=kInput, metadata={op_name="jit(f)/transpose(jvp(ResNet))/stem_norm/mul"}
  ROOT %t = (f32[8,4]{1,0}, f16[1000,4]{1,0}, s32[]) tuple(%norm, %table)
}

ENTRY %main (q: (s32[])) -> (s32[]) {
  %q = (s32[]) parameter(0)
  %one = (s32[]) while(%q), condition=%add, body=%short
  ROOT %two = (s32[]) while(%one), condition=%add, body=%steps
}
"""  # noqa: E501


def test_a_step_is_counted_by_what_it_launches():
    kernels = bench_program.loop_kernels(PROGRAM, gathered=8000)
    assert [(k.name, k.kind, k.direction, k.read, k.written) for k in kernels] == [
        ("crop", "other", "around", 0, 64),
        ("conv", "product", "forward", 128 + 64, 128),
        ("norm", "normalization", "backward", 128, 128),
    ]
    assert bench_program.loop_kernels(PROGRAM)[0].read == 8000


def test_a_program_without_a_loop_is_an_error():
    with pytest.raises(ValueError, match="no loop"):
        bench_program.loop_kernels(PROGRAM.replace("body=", "other="))


@pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is not None, reason="a compiler for GPUs is installed"
)
def test_a_missing_compiler_says_how_to_get_it():
    with pytest.raises(ConfigError, match="cuda13"):
        bench_program.main([])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None, reason="needs the extra cuda13"
)
def test_both_stages_compile_for_a_described_gpu():
    result = bench_program.main(["--preset", "small", "--width", "4", "--runs", "2"])
    assert "H100" in result["device"]
    assert len(result["programs"]) == 4
    for found in result["programs"].values():
        assert found["kernels"]["all"] == sum(found["kernels"].values()) / 2 > 100
        assert found["kernels"]["forward, product"] > 0
    assert jax.default_backend() == "cpu"
