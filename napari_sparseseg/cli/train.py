"""``napari-sparseseg train``."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from napari_sparseseg.cli.common import add_slide_options, command, open_slide_of, positive, positive_int, say
from napari_sparseseg.config import DEFAULT_ENCODER, Balancing, TrainConfig
from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from napari_sparseseg.config import ClassDef
    from napari_sparseseg.session import Session


def add_train(commands: Any) -> None:
    """Describe the command."""
    train = command(commands, "train", _train, "train a model on annotated slides")
    train.add_argument("slides", type=Path, nargs="+", metavar="SLIDE", help="annotated slides")
    train.add_argument("--model", type=Path, required=True, metavar="OUT.safetensors", help="model file to write")
    train.add_argument(
        "--annotations", type=Path, nargs="+", metavar="FILE",
        help="one file per slide, in the same order; default: the file beside each slide with the same name and "
        ".geojson, .xml or .sparseseg",
    )  # fmt: skip
    train.add_argument(
        "--balancing",
        choices=get_args(Balancing),
        help="how labelled pixels share the loss; default: that of the preset, else instance",
    )
    add_slide_options(train)
    train.add_argument("--mpp", type=positive, help="training resolution in um per pixel; default: 1.0")
    train.add_argument(
        "--encoder", metavar="NAME[@FILE]",
        help="a name such as uni2-h or any timm encoder, with @FILE for weights that you have; default: that of the "
        "initial model, else tf_efficientnet_lite0",
    )  # fmt: skip
    budget = train.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=positive, help="training time; default: 60")
    budget.add_argument("--steps", type=positive_int, help="number of training steps instead of a time")
    train.add_argument("--patience", type=positive_int, help="stop after this many held-out comparisons without a gain")
    train.add_argument(
        "--scratch", action="store_true", help="train the paper's plain U-Net instead of using a pretrained encoder"
    )
    train.add_argument("--yes", action="store_true", help="download the named encoder without asking")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or mps; default: %(default)s")
    train.add_argument("--seed", type=int, help="default: that of the preset, else 0")
    train.add_argument(
        "--preset", type=Path, metavar="FILE",
        help="classes and settings from a preset (.json) or another model; options given here take precedence",
    )  # fmt: skip
    train.add_argument("--overwrite", action="store_true", help="replace an existing model file")
    train.add_argument("--resume", action="store_true", help="continue from the model file if it exists")
    train.add_argument("--init", type=Path, metavar="MODEL", help="start from this model instead")


def _train(args: argparse.Namespace) -> dict[str, Any]:
    """Alone, or as one of the processes that torchrun started: then the first one speaks and writes."""
    from napari_sparseseg.session import join_ranks, tune_process

    tune_process()
    with join_ranks(args.device) as (mine, args.device):
        if not mine.first:
            args.silent, args.json = True, False
        return _train_here(args)


def _train_here(args: argparse.Namespace) -> dict[str, Any]:
    from napari_sparseseg.session import Session

    if args.annotations and len(args.annotations) != len(args.slides):
        raise TrainingError(
            f"--annotations has {len(args.annotations)} files for {len(args.slides)} slides; give one per slide."
        )
    _require_model_name(args)
    init = args.model if args.resume and args.model.exists() else args.init
    classes, config = _settings(args)
    _agree_to_encoder(args)
    with Session(classes, config=config) as session:
        if init is not None:
            session.load_model(init)
            if session.model is not None and not session.model.trainable:
                raise TrainingError(f"{init} is a network of another program; it can predict, but not be trained on.")
        for path, annotations in zip(args.slides, args.annotations or repeat(None), strict=False):
            slide = open_slide_of(session, path, args, "train")
            for problem in slide.warnings:
                say(args, f"{path.name}: {problem}")
            if slide.mpp is None:
                say(args, f"{path.name}: its um per px are unknown; it is used at its own pixels (see --mpp-of-slide)")
            session.import_annotations(annotations)
        seconds = args.seconds if args.seconds or args.steps else 60.0
        say(args, f"training on {len(args.slides)} slide(s), classes: {', '.join(c.name for c in session.classes)}")
        _run_training(session, args, seconds)
        if not args.silent:
            session.save_model(args.model, overwrite=True)
        status = session.status
        result = {
            "model": str(args.model), "steps": status.step, "loss": status.loss, "seconds": round(status.seconds, 1),
            "device": status.device, "classes": [c.name for c in session.classes], "metrics": status.metrics,
            "message": status.message,
            "labelled_pixels": {c.name: _labelled(session, c.id) for c in session.classes},
        }  # fmt: skip
    if status.message:
        say(args, status.message)
    say(args, f"wrote {args.model} after {result['steps']} steps, {result['seconds']} s on {result['device']}")
    return result


def _settings(args: argparse.Namespace) -> tuple[tuple[ClassDef, ...], TrainConfig]:
    """Classes and settings: of the preset, if there is one, with what is said on the command line instead.

    A file that came from anywhere makes nobody ask the network: an encoder that is not here has to be named.
    """
    from napari_sparseseg.session.presets import read_preset

    preset = None if args.preset is None else read_preset(args.preset)
    base = TrainConfig() if preset is None else preset.config
    if base.architecture == "scratch" and not args.encoder:
        args.scratch = True
    if base.fetches and not args.scratch and not args.encoder:
        if base.downloads:
            raise TrainingError(
                f"{args.preset} names the encoder {base.encoder}, which would be looked up on the network: add "
                f"--encoder {base.encoder} to agree, or name another."
            )
        args.encoder = base.encoder
    given = {
        "balancing": args.balancing, "mpp": args.mpp, "encoder": args.encoder, "device": args.device,
        "seed": args.seed,
    }  # fmt: skip
    config = base.updated({k: v for k, v in given.items() if v is not None})
    architecture = "scratch" if args.scratch else "pretrained"
    return () if preset is None else preset.classes, config.updated({"architecture": architecture})


def _require_model_name(args: argparse.Namespace) -> None:
    """Refuse a model file that cannot be written, or would replace another one, before anything is trained."""
    if args.model.suffix != ".safetensors":
        raise TrainingError(f"--model {args.model} must end in .safetensors.")
    if not args.model.resolve().parent.is_dir():
        raise TrainingError(f"the folder of --model {args.model} does not exist; make it first.")
    continues = args.resume or (args.init is not None and args.init.resolve() == args.model.resolve())
    if args.model.exists() and not (continues or args.overwrite):
        raise TrainingError(
            f"{args.model} exists already; continue it with --resume, replace it with --overwrite, or choose another "
            "name."
        )


def _agree_to_encoder(args: argparse.Namespace) -> None:
    """Show licence, size and cost of an encoder that is not bundled, and ask before its weights are downloaded."""
    config = TrainConfig(encoder=args.encoder or DEFAULT_ENCODER)
    if not config.fetches or args.scratch:
        return
    from napari_sparseseg.session import encoder_info

    info = encoder_info(args.encoder)
    say(args, info.summary)
    say(args, f"cost: {info.cost(args.device)}")
    if not config.downloads:
        return
    asked = sys.stdin.isatty() and not args.silent and not args.yes
    if not args.yes and not (asked and input("Download where it is not here yet? [y/N] ").lower().startswith("y")):
        raise TrainingError(f"{info.summary}. It is downloaded only with your consent: add --yes.")


def _run_training(session: Session, args: argparse.Namespace, seconds: float | None) -> None:
    try:
        # An encoder that is named here was requested, also where the initial model has another.
        named = {"encoder": args.encoder} if args.encoder else {}
        with _ended_like_ctrl_c():
            session.train(seconds=seconds, steps=args.steps, patience=args.patience, wait=True, **named)
    except KeyboardInterrupt:
        session.stop()
        if not args.silent:
            session.save_model(args.model, overwrite=True)
        say(args, f"interrupted; the model so far is in {args.model}")
        raise


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Inside, the end of a terminal (SIGHUP) or of a cluster's patience (SIGTERM) is an interrupt: the model is kept.

    A signal that is ignored, as by nohup, or that a program around this one handles, stays as it is.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in numbers if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _labelled(session: Session, class_id: int) -> int:
    return sum(e.annotations.counts().get(class_id, 0) for e in session.entries)
