"""All checks that need a GPU, side by side on the GPUs of this machine, longest builds first.

    python tests/gpu/run_all.py --trt-python TRT --tensorrt-include DIR --recordings FOLDER --out OUT [--only A,B]

TRT is the Python that has TensorRT; this one has torch, and nvcc is on the PATH; the step "user" wants
requirements-nuscenes.txt in both. Each GPU (of CUDA_VISIBLE_DEVICES, where set) does one step at a time, steps that are
timed wait until this command has nothing else to do, and a step whose log ends with "exit 0" is not done again: what
was cut off goes on with the same command. OUT gets a log and results of every step, the engines, and status.txt, a line
for each step. Exit status 1 where anything failed.
tests/gpu/README.md says what the steps are.
"""

import argparse
import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "uniad"))

from runtime import cuda  # noqa: E402

SOME = "camera_cross_attention,modulated_deform_conv2d_norm,merge_masks"  # plugins of the goldens with plugins mixed


@dataclasses.dataclass(frozen=True)
class Step:
    """Commands one after the other; the first that fails ends the step."""

    name: str
    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()  # steps that must have succeeded
    alone: bool = False  # timed: nothing else may run


def all_steps(py: str, trt: str, include: str, recordings: str, out: str) -> list[Step]:
    """In the order in which they are begun: what takes longest first."""
    gpu, bench, variants = "tests/gpu", "benchmarks", f"{out}/variants/libuniad_plugins.so"
    kernels = f"{py} {gpu}/check_plugins.py --library {variants}"
    steps = [
        Step("plugins", (f"TENSORRT_INCLUDE_DIR={include} plugins/build.sh {out}/plugins",)),
        Step("variants", (f"VARIANTS=1 plugins/build.sh {out}/variants",)),
    ]

    def sequence(size: str, choice: str, dtype: str, level: int) -> Step:
        name = f"{size}_{choice}_{dtype}"
        options = (
            f"--sizes {size} --recordings {recordings} --plans {out}/{name} --dtypes {dtype} --builder-opt {level}"
        )
        command = f"{trt} {gpu}/check_session.py {options} --plugins {SOME if choice == 'some' else choice}"
        return Step(name, (f"{command} --timing-cache {out}/{name}.cache --out {out}/{name}.json",), ("plugins",))

    steps += [sequence("full", "off", "float16", 0), sequence("full", "auto", "float16", 1)]
    steps += [sequence("full", "off", "float32", 0), sequence("tiny", "off", "float16", 0)]
    steps += [Step("compile", (f"{py} {bench}/benchmark_frame.py --rows compile -o {out}/compile.json",))]
    steps += [sequence("full", "auto", "float32", 0), sequence("tiny", "off", "float32", 0)]
    steps += [sequence("tiny", choice, "float16", 0) for choice in ("some", "auto")]
    steps += [sequence("tiny", "auto", "float32", 0), user_step(py, trt, out)]
    steps += [Step("references", (f"{py} {gpu}/check_ops.py references -o {out}/refs.npz",))]
    for choice in ("auto", "off"):
        options = f"-r {out}/refs.npz -o {out}/ops_{choice}.json --jobs 12 --group-size 8 --builder-opt 1"
        command = f"{trt} {gpu}/check_ops.py run {options} --plugins {choice}"
        steps.append(Step(f"ops_{choice}", (command,), ("plugins", "references")))
    steps.append(Step("kernels", (kernels,), ("variants",)))
    for tool in ("memcheck", "racecheck"):
        command = f"compute-sanitizer --tool {tool} --error-exitcode 1 {kernels} --small"
        steps.append(Step(tool, (command,), ("variants",)))
    times = f"{py} {bench}/benchmark_ops.py --library {variants} -o {out}/kernel_times.json"
    steps.append(Step("kernel_times", (times,), ("variants",), alone=True))
    engine = f"{out}/full_auto_float16/full_float16_plugins_auto.plan"
    rows = f"--rows tensorrt,fp32,tf32,fp16 --trt-python {trt} --profile {out}/profile -o {out}/frame.json"
    frame = f"{py} {bench}/benchmark_frame.py --engine {engine} {rows}"
    return [*steps, Step("frame", (frame,), ("full_auto_float16",), alone=True)]


def user_step(py: str, trt: str, out: str) -> Step:
    """The five scripts as a user calls them, on the tiny checkpoint. Its random weights make float16 lose tracks, so
    that of that engine's summary only bad input (exit status 2) counts."""
    demo, scripts = f"{out}/demo", "examples/uniad"
    run, checked = f"{scripts}/run.py -i {demo}/nuscenes --fresh", f"--check-reference {demo}/check.npz"
    commands = [
        f"rm -rf {demo}; cd {scripts} && {py} -m data.recipe -o {demo} --frames 1",
        f"cd {scripts} && {py} -m data.synthetic -o {demo}/nuscenes --scenes mini_val --frames 8",
        f"{py} {scripts}/pytorch_convert.py -i {demo}/tiny_e2e.pth -o {demo}/c-model "
        f"--anchors {demo}/motion_anchors.npy",
        f"{py} {scripts}/builder.py -i {demo}/c-model -o {demo}/base.plan --backend torch {checked}",
        f"{py} {run} -e {demo}/base.plan -o {demo}/base_result --device cuda",
    ]
    for dtype, most in (("float32", 0), ("float16", 1)):
        engine, result = f"{demo}/{dtype}.plan", f"{demo}/{dtype}"
        commands += [
            f"{trt} {scripts}/builder.py -i {demo}/c-model -o {engine} --dtype {dtype} {checked}",
            f"{trt} {run} -e {engine} -o {result}",
            f"{trt} {run} -e {engine} -o {result}_profiled --profile",
            f"{trt} {scripts}/summarize.py -i {result} -b {demo}/base_result; [ $? -le {most} ]",
        ]
    return Step("user", tuple(commands), ("plugins",))


def visible_gpus(visible: str | None, count: int) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, whose value here is `visible`, of the `count` GPUs that CUDA sees."""
    return [str(gpu) for gpu in range(count)] if visible is None else visible.split(",")[:count]


class Runner:
    """Deals steps out to GPUs, a thread for each."""

    def __init__(self, steps: list[Step], gpus: list[str], out: pathlib.Path, environment: dict[str, str]):
        self.waiting, self.gpus, self.out, self.environment = list(steps), gpus, out, environment
        self.known = {step.name for step in steps}
        self.states: dict[str, str] = {}  # of steps that were begun, or never will be
        self.running: set[Step] = set()
        self.changed = threading.Condition()

    def run(self) -> bool:
        """All steps but those that succeeded before; whether all succeeded."""
        for step in list(self.waiting):
            if self._log(step).exists() and self._log(step).read_text().endswith("\nexit 0\n"):
                self.waiting.remove(step)
                self._tell(step, "ok, done before")
        threads = [threading.Thread(target=self._work, args=(gpu,)) for gpu in self.gpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return all(state.startswith("ok") for state in self.states.values())

    def _log(self, step: Step) -> pathlib.Path:
        return self.out / f"{step.name}.log"

    def _tell(self, step: Step, state: str) -> None:
        self.states[step.name] = state
        print(f"{time.strftime('%H:%M:%S')} {step.name}: {state}", flush=True)
        lines = "".join(f"{name}: {state}\n" for name, state in self.states.items())
        (self.out / "status.txt").write_text(lines)

    def _next(self) -> Step | None:
        """A step that can begin now; waits for one. None where there will be none."""
        while self.waiting:
            for step in list(self.waiting):
                # A step that was not asked for may have been done by another call; if not, it shows when this one runs.
                needs = [self.states.get(name, "waiting") for name in step.needs if name in self.known]
                if any(state.startswith(("failed", "not run")) for state in needs):
                    self.waiting.remove(step)
                    self._tell(step, "not run, needs what failed")
                    break
                # What is timed waits for all others: for those that wait too, so that they don't wait for it.
                others = self.running or any(not other.alone for other in self.waiting)
                timed = any(other.alone for other in self.running)
                if all(state.startswith("ok") for state in needs) and not (others if step.alone else timed):
                    self.waiting.remove(step)
                    return step
            else:
                self.changed.wait()
        return None

    def _work(self, gpu: str) -> None:
        while True:
            with self.changed:
                step = self._next()
                self.changed.notify_all()
                if step is None:
                    return
                self.running.add(step)
                self._tell(step, f"on GPU {gpu}")
            began, status = time.monotonic(), self._run(step, gpu)
            with self.changed:
                self.running.remove(step)
                last = f"{time.monotonic() - began:.0f} s"
                self._tell(step, f"ok, {last}" if status == 0 else f"failed, {last}: {self._log(step)}")
                self.changed.notify_all()

    def _run(self, step: Step, gpu: str) -> int:
        environment = {**self.environment, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONUNBUFFERED": "1"}
        status = 0
        with self._log(step).open("w") as log:
            for command in step.commands:
                log.write(f"+ {command}\n")
                log.flush()
                done = subprocess.run(
                    ["bash", "-c", command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
                status = done.returncode
                if status:
                    break
            log.write(f"\nexit {status}\n")
        return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trt-python", required=True, help="the Python that has TensorRT")
    parser.add_argument("--tensorrt-include", required=True, metavar="DIR", help="the headers of that TensorRT")
    parser.add_argument("--recordings", required=True, metavar="FOLDER", help="holds full_frame_0.npz and _1.npz")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="FOLDER", help="logs, results and engines")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="A,B", help="these steps (default: all)")
    parser.add_argument("--list", action="store_true", help="print the steps and do nothing")
    args = parser.parse_args()
    out = args.out.resolve()
    folders = (args.tensorrt_include, args.recordings)
    include, recordings = (shlex.quote(str(pathlib.Path(x).resolve())) for x in folders)
    steps = all_steps(
        shlex.quote(sys.executable), shlex.quote(args.trt_python), include, recordings, shlex.quote(str(out))
    )
    if unknown := sorted(set(args.only or ()) - {step.name for step in steps}):
        sys.exit(f"error: no step {', '.join(unknown)}; --list prints them")
    steps = [step for step in steps if args.only is None or step.name in args.only]
    if args.list:
        print("\n".join(step.name for step in steps))
        return
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), cuda.device_count())
    if not gpus:
        sys.exit("error: no GPU here: these checks need one")
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "UNIAD_PLUGINS": str(out / "plugins")}
    sys.exit(not Runner(steps, gpus, out, environment).run())


if __name__ == "__main__":
    main()
