"""Train, evaluate, compare and measure federated methods: `python launch.py --config=configs/quickstart.py`."""

import ast
import difflib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from fedjax_pfl import catalogue
from fedjax_pfl.errors import UserError, nearest

MODES = ("train", "sweep", "eval", "partition", "embed", "report", "benchmark")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.some.option=value changes an option.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run (default: runs/<config>[-<variant>]-seed<seed>), or of the sweep's."
)
_MODE = flags.DEFINE_enum("mode", "train", MODES, "train: a run, or go on with it. sweep: a run for each word of the config "
                          "and each seed, and their table. eval: a run's checkpoint. partition: who holds what. embed: the "
                          "text embeddings of the classes, as a file. report: a table over runs. benchmark: how fast a round "
                          "is.")  # fmt: skip
_VARIANTS = flags.DEFINE_list("variants", [], "sweep: these words of the config alone (default: all of its VARIANTS).")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "sweep: the seeds of each word.")
_WHICH = flags.DEFINE_enum(
    "which", "best", ("best", "last"), "eval, report, sweep: the best round by validation, or the last."
)
_STOP_AT = flags.DEFINE_integer("stop_at", 0, "train: save and stop after this round; the same command goes on.", 0)
_PROFILE = flags.DEFINE_integer(
    "profile", 0, "train: record so many rounds of this start into the run's folder profile/, for xprof or Perfetto.", 0
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "train on several hosts: HOST:PORT of the first of them; each runs the same command, and they "
    "share the folder of the run. auto: as the cluster (Slurm, Open MPI, ...) says, without the next two flags."
)  # fmt: skip
_PROCESSES = flags.DEFINE_integer("num_processes", None, "train on several hosts: how many processes there are.", 1)
_PROCESS = flags.DEFINE_integer("process_id", None, "train on several hosts: which of them this is, from 0.", 0)
_KNOWN = flags.DEFINE_list(
    "known_labels", [], "eval: tell a label-mask model so many labels (5), or these (person,dog), of each example."
)
_RUNS = flags.DEFINE_list("runs", [], "report: folders of runs, or folders of such folders.")
_METRICS = flags.DEFINE_list("metrics", [], "report, sweep: the metrics to show (default: all).")
_MIX = flags.DEFINE_bool("mix", False, "report, sweep: compare runs on different data or splits all the same.")
_HELP = flags.DEFINE_bool("help", False, "This text; with --config all its options as well.")
_QUIET = flags.DEFINE_bool("quiet", False, "No progress.")


def main(argv: list[str]) -> int:
    """Parse the flags and do what the mode says. Returns the exit status."""
    try:
        _parse(argv)
        if _HELP.value:
            print(_help())
            return 0
        return _run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted before the first round; nothing was changed", file=sys.stderr)
        return 130


def _run() -> int:
    from fedjax_pfl import commands, hosts  # jax and all: only now, so that --help is quick

    mode = _MODE.value
    if _COORDINATOR.value or _PROCESSES.value or _PROCESS.value is not None:
        if mode != "train":
            raise UserError(f"--coordinator_address: several hosts only train, found --mode={mode}")
        hosts.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if mode == "report":
        return commands.report(_RUNS.value, _WORKDIR.value, _METRICS.value, _WHICH.value, _MIX.value)
    config = _CONFIG.value
    if mode == "benchmark":
        return commands.benchmark(config, _WORKDIR.value)
    if mode == "eval":
        return commands.evaluate(config, _WORKDIR.value, _WHICH.value, _KNOWN.value)
    if config is None:
        raise UserError(f"--config: missing, --mode={mode} needs a config file such as configs/quickstart.py")
    file: Any = flags.FLAGS["config"]
    stem = "-".join([Path(file.config_filename.split(":")[0]).stem, *file.config_filename.split(":")[1:]])
    if mode != "train" and (config.seeds or config.lrs):
        raise UserError(f"config.{'seeds' if config.seeds else 'lrs'}: only --mode=train, found --mode={mode}")
    if mode == "sweep":
        return _sweep(file.config_filename)
    several = mode == "train" and (config.seeds or config.lrs)
    workdir = _WORKDIR.value or f"runs/{stem}" + ("" if several else f"-seed{config.seed}")
    if mode == "partition":
        return commands.partition(config, workdir)
    if mode == "embed":
        return commands.embed(config, workdir)
    if several:
        return commands.train_together(config, workdir, _WHICH.value, _METRICS.value, _STOP_AT.value, _QUIET.value)
    return commands.train(config, workdir, _STOP_AT.value, _QUIET.value, _PROFILE.value)


def _sweep(path: str) -> int:
    """Each word and seed as its own command would have it, with this one's other options, one after the other."""
    from fedjax_pfl import commands

    file, _, word = path.partition(":")
    if word:
        raise UserError(f"--config: found the word '{word}', but --mode=sweep takes words by --variants={word}")
    known = list(getattr(_module(file), "VARIANTS", {}))
    for name in _VARIANTS.value:
        if name not in known:
            raise UserError(
                f"--variants: unknown name '{name}'" + (nearest(name, known) if known else f"; {file} has no VARIANTS")
            )
    if not (seeds := _SEEDS.value) or not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: found '{','.join(seeds)}', expected different whole numbers such as 0,1,2")
    root, runs = Path(_WORKDIR.value or f"runs/{Path(file).stem}"), []
    given = [arg.lstrip("-").removeprefix("no").split("=")[0].removeprefix("config.") for arg in sys.argv[1:]]
    changes = {name: value for name, value in _fields(_CONFIG.value).items() if name in given}
    if "seed" in changes:
        raise UserError(
            f"--config.seed: found {changes['seed']}, but --mode=sweep takes seeds by --seeds={changes['seed']}"
        )
    for seed in seeds:
        for name in _VARIANTS.value or known or [""]:
            config = _load(f"{file}:{name}" if name else file)
            config.update_from_flattened_dict({**changes, "seed": int(seed)})
            runs.append((root / f"{name or Path(file).stem}-seed{seed}", config.lock()))
    return commands.sweep(runs, root, _WHICH.value, _METRICS.value, _MIX.value)


def _parse(argv: list[str]) -> None:
    """Parse the command line; whatever is wrong with it becomes a UserError."""
    path = next((arg.split("=", 1)[1] for arg in argv if arg.lstrip("-").startswith("config=")), None)
    options = [arg.lstrip("-").split("=")[0] for arg in argv if arg.lstrip("-").startswith("config.")]
    if path is not None:
        known = [f"config.{name}" for name in _fields(_load(path))]
        for name in options:
            if name not in known:
                raise UserError(f"--{name}: no such option{_near(name, known)}")
    elif options:
        raise UserError(f"--{options[0]}: a config option, but no --config=FILE is given")
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        names = [name for name in flags.FLAGS if not name.startswith("config.")]
        raise UserError(f"--{error.flagname}: no such flag{nearest(error.flagname, names)}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_line(error).removeprefix("flag ")) from None
    if rest:
        raise UserError(f"found '{rest[0]}', expected only flags such as --config=configs/quickstart.py")
    if _CONFIG.value is not None:
        _CONFIG.value.lock()


def _load(path: str) -> Any:
    """What get_config() of the config file returns; `path` may end in `:argument`."""
    file, *argument = path.split(":", 1)
    try:
        return _module(file).get_config(*argument)
    except UserError:
        raise
    except Exception as error:  # whatever a user's file may raise
        raise UserError(f"{file}: {type(error).__name__}: {_line(error)}") from None


def _module(file: str) -> Any:
    """The config file itself."""
    if not Path(file).is_file():
        files = map(str, sorted(Path(file).parent.glob("*.py")))
        raise UserError(f"--config: no such file: {file}{nearest(file, files)}")
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise UserError(f"{file}: {type(error).__name__}: {_line(error)}") from None
    return module


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean '--{near[0]}'?)" if near else " (configs/base.py lists them all)"


def _fields(config: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in config.items():
        found |= _fields(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name: value}
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _help() -> str:
    lines = [__doc__ or "", "", flags.FLAGS.main_module_help().strip(), "", "configs:"]
    for path in sorted((Path(__file__).parent / "configs").glob("*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        lines.append(f"  configs/{path.name:<32} {summary}")
    lines += ["", catalogue.help_text()]
    if _CONFIG.value is not None:
        lines += ["", "options of this config (configs/base.py says what each means):"]
        lines += [f"  --config.{name}={value}" for name, value in _fields(_CONFIG.value).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
