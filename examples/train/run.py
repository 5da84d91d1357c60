"""A whole run: train, choose the best epoch, test once."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.util import batch_to_device
from sentence_transformers.util.distributed import distributed_evaluation
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils.logging import disable_progress_bar

from examples.train.checkpoints import last_checkpoint
from examples.train.data import Part, leave_out, load_parts, missing_of
from examples.train.evaluation import RetrievalEvaluator
from examples.train.folder import LeftOut, check_same_run, keep_run, kept_left_out
from examples.train.model import RunModel, build_model
from examples.train.objective import Objective
from examples.train.processes import on_all, rank_and_world, same_error, same_on_all
from examples.train.settings import Execution, RunSettings
from examples.train.tokens import TokenFolder
from examples.train.trainer import RetrievalTrainer, SaveEvery, freeze_unused
from examples.train.unreadable import describe, find_unreadable
from muse_adapter.files import write_whole

logger = logging.getLogger(__name__)

KEPT = ("epoch", "eval_videos", "eval_left_out")  # of an evaluation, beside its metrics


def run(settings: RunSettings, execution: Execution) -> dict[str, Any]:
    """Train, or go on from the last checkpoint; then test the best epoch.

    Returns:
        What `results.json` holds: the metrics of the test, those of the validation after each
        epoch, the numbers of captions and videos, and the settings.
    """
    with same_error():
        check_execution(settings, execution)
    arguments = training_arguments(settings, execution)  # from here on the processes can talk
    on_all(lambda: check_same_run(settings, execution))
    results, checkpoints = execution.output / "results.json", Path(arguments.output_dir)
    finished, kept, last = same_on_all(
        lambda: (
            results.is_file(),
            kept_left_out(execution),
            last_checkpoint(checkpoints, execution.processes),
        )
    )
    if finished:
        return json.loads(results.read_text())
    if not execution.progress:
        disable_progress_bar()
    parts = on_all(lambda: load_parts(settings, None if kept is None else kept.missing))
    torch.manual_seed(settings.seed)
    model, objective = on_all(lambda: build(settings, execution, arguments.device))
    # Last, since they are many.
    unreadable = check_videos(parts, execution, kept)
    parts = on_all(lambda: leave_out(parts, unreadable, settings))
    trainer = build_trainer(settings, execution, arguments, objective, parts)
    tokens = token_folder(model, parts, settings, execution)
    if tokens is not None:
        tokens.check()
    # All inputs are valid: record the settings.
    left_out = LeftOut(missing_of(parts), unreadable)
    on_all(lambda: keep_run(settings, execution, left_out))
    if tokens is not None:
        read_tokens(model, tokens, execution)

    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    history = [
        {
            name.removeprefix("eval_"): value
            for name, value in entry.items()
            if name in KEPT or name.startswith(("eval_t2v", "eval_v2t"))
        }
        for entry in trainer.state.log_history
        if "eval_t2v_R@1" in entry
    ]
    best = trainer.state.best_model_checkpoint
    if trainer.is_world_process_zero():
        save(model, objective, execution.output / "last")
    if settings.validate:
        if best is None:
            raise RuntimeError(f"no epoch was evaluated in {checkpoints}")
        trainer.load(checkpoints / Path(best).name)
        if trainer.is_world_process_zero():
            save(model, objective, execution.output / "best")
    test = evaluate_test(model, objective, parts["test"], execution)
    result = {
        "test": test,
        "tested": "best" if settings.validate else "last",
        "validation": history,
        "steps": trainer.state.global_step,
        "sizes": {
            name: {
                "captions": len(part.captions),
                "videos": len(part.videos),
                "left_out": part.left_out,
            }
            for name, part in parts.items()
        },
        "settings": dataclasses.asdict(settings),
        "processes": execution.processes,
    }
    if trainer.is_world_process_zero():
        write_whole({results: (json.dumps(result, indent=2) + "\n").encode()})
    return result


def build(
    settings: RunSettings, execution: Execution, device: torch.device
) -> tuple[RunModel, Objective]:
    """Build the model, and what it is trained with."""
    skip = execution.skip_unreadable
    model = build_model(settings, skip_unreadable=skip).to(device)
    if execution.grad_checkpointing:
        model[0].gradient_checkpointing_enable()
    return model, Objective(model, settings.objective, skip_unreadable=skip).to(device)


def check_videos(
    parts: dict[str, Part], execution: Execution, kept: LeftOut | None
) -> dict[str, str]:
    """Find the videos that cannot be read, or take up what was found when the run began.

    Args:
        parts: All videos.
        execution: How the run is carried out.
        kept: What was found when it began; None: it is a new run.

    Returns:
        Why, by their paths.

    Raises:
        ValueError: There are some, and they are not to be left out.
    """
    videos = [video for part in parts.values() for video in part.videos]
    if kept is None:
        unreadable = find_unreadable(videos, progress=execution.progress)
    else:
        unreadable = kept.unreadable
    on_all(lambda: report_unreadable(unreadable, len(videos), execution))
    return unreadable


def report_unreadable(
    unreadable: dict[str, str], total: int, execution: Execution, remedy: str = ""
) -> None:
    """Warn of videos that are left out, once for all processes.

    Raises:
        ValueError: There are some, and they are not to be left out.
    """
    if not unreadable:
        return
    message = describe(unreadable, total)
    if not execution.skip_unreadable:
        raise ValueError(f"{message}\nLeave them out with --skip-unreadable{remedy}")
    if rank_and_world()[0] == 0:
        logger.warning("%s\nThey are left out", message)


def token_folder(
    model: RunModel, parts: dict[str, Part], settings: RunSettings, execution: Execution
) -> TokenFolder | None:
    """Return the folder of the tokens of all videos; None: they are not kept."""
    if execution.cache_tokens is None:
        return None
    videos = [video for part in parts.values() for video in part.videos]
    dtype = getattr(torch, str(settings.cache_dtype))
    return TokenFolder(execution.cache_tokens, model, videos, settings.videos, dtype)


def read_tokens(model: RunModel, tokens: TokenFolder, execution: Execution) -> None:
    """Keep the tokens of all videos in a folder, and let the model read them from there.

    Raises:
        ValueError: Some could not be read when they were encoded, and are not to be left out.
    """
    # Loaders draw seeds: keep the random state independent of what is already cached.
    with torch.random.fork_rng(devices=[]):
        stored = tokens.store(workers=execution.workers, progress=execution.progress)
    empty = on_all(lambda: stored.without_frames(tokens.videos))
    remedy = ", or delete these files of tokens: the same command reads their videos again"
    on_all(lambda: report_unreadable(empty, len(tokens.videos), execution, remedy))
    model.read_from(stored)


def save(model: RunModel, objective: Objective, folder: Path) -> None:
    """Save a model, and what was trained beside it."""
    model.save_pretrained(str(folder))  # the objective may hold it wrapped
    objective.save(folder)


def build_trainer(
    settings: RunSettings,
    execution: Execution,
    arguments: SentenceTransformerTrainingArguments,
    objective: Objective,
    parts: dict[str, Part],
) -> RetrievalTrainer:
    """Build the trainer."""
    model, train = objective.model, parts["train"]
    files = [train.videos[target] for target in train.targets]
    example = on_all(lambda: read_example(model, train))
    unused = freeze_unused(objective, [batch_to_device(e, arguments.device) for e in example])
    if unused:
        logger.info("frozen, since the loss does not depend on them: %s", ", ".join(unused))
    evaluator = None
    if settings.validate:
        evaluator = RetrievalEvaluator(
            parts["validation"], objective, batch_size=execution.eval_batch_size
        )
    save_steps = execution.save_steps
    return RetrievalTrainer(
        settings,
        train.targets,
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"caption": train.captions, "video": files}),
        loss=objective,
        evaluator=evaluator,
        callbacks=[] if save_steps is None else [SaveEvery(save_steps)],
    )


def read_example(model: RunModel, train: Part) -> list[dict[str, Any]]:
    """Return the inputs of a caption, and of the first video that can be read."""
    videos = (model.preprocess([video]) for video in train.videos)
    video = next((video for video in videos if video["attention_mask"].any()), None)
    if video is None:
        raise ValueError("no video of the training can be read")
    return [model.preprocess([train.captions[0]]), video]


def check_execution(settings: RunSettings, execution: Execution) -> None:
    """Check that a run can be carried out as it is asked for.

    Raises:
        ValueError: The processes cannot share a batch, one process has several GPUs, a reporter is
            unknown, or a folder of tokens and their dtype are not both given.
    """
    if (execution.cache_tokens is None) != (settings.cache_dtype is None):
        raise ValueError("tokens need both a folder, --cache-tokens, and their --cache-dtype")
    processes = execution.processes
    if settings.batch_size % processes:
        raise ValueError(
            f"a batch of {settings.batch_size} cannot be shared by {processes} processes"
        )
    get_reporting_integration_callbacks(execution.report_to)  # refuses names it does not know
    if processes == 1 and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs: start one process for each with torchrun "
            "--nproc-per-node, or choose one with CUDA_VISIBLE_DEVICES"
        )


def training_arguments(
    settings: RunSettings, execution: Execution
) -> SentenceTransformerTrainingArguments:
    """Build the trainer's arguments; of several processes this starts the group."""
    cuda = torch.cuda.is_available()
    strategy = "epoch" if settings.validate else "no"
    return SentenceTransformerTrainingArguments(
        output_dir=str(execution.output / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // execution.processes,
        learning_rate=settings.lr,
        max_grad_norm=1.0,
        seed=settings.seed,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        eval_strategy=strategy,
        save_strategy="epoch",
        save_total_limit=2,  # the best and the last
        metric_for_best_model="eval_t2v_R@1" if settings.validate else None,
        greater_is_better=True if settings.validate else None,
        dataloader_drop_last=True,
        dataloader_num_workers=execution.workers,
        dataloader_persistent_workers=execution.workers > 0,
        # Each text and each video is a forward pass of its own: parameters unused in one of them
        # are used in the other, and those unused in both are frozen.
        ddp_find_unused_parameters=False,
        ddp_backend=None if cuda or execution.processes == 1 else "gloo",
        use_cpu=not cuda,
        logging_steps=10,
        report_to=execution.report_to or "none",
        disable_tqdm=not execution.progress,
    )


def evaluate_test(
    model: SentenceTransformer, objective: Objective, part: Part, execution: Execution
) -> dict[str, float]:
    """Evaluate the test part; on several processes only the first gets the metrics."""
    evaluator = RetrievalEvaluator(part, objective, batch_size=execution.eval_batch_size)
    with distributed_evaluation(model) as is_first:
        return evaluator(model) if is_first else {}
