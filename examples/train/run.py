"""A whole run: train, choose the best epoch, test once."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
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
from examples.train.data import Part, leave_out, load_parts
from examples.train.evaluation import RetrievalEvaluator
from examples.train.folder import check_same_run, keep_run, kept_unreadable
from examples.train.model import RunModel, build_model
from examples.train.objective import Objective
from examples.train.processes import rank_and_world
from examples.train.settings import Execution, RunSettings
from examples.train.tokens import store_tokens
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
    if (execution.cache_tokens is None) != (settings.cache_dtype is None):
        raise ValueError("tokens need both a folder, --cache-tokens, and their --cache-dtype")
    check_same_run(settings, execution)
    results = execution.output / "results.json"
    if results.is_file():
        return json.loads(results.read_text())
    if not execution.progress:
        disable_progress_bar()
    parts = load_parts(settings)
    arguments = training_arguments(settings, execution)
    unreadable = check_videos(parts, execution)
    parts = leave_out(parts, unreadable, settings)
    torch.manual_seed(settings.seed)
    model = build_model(settings, skip_unreadable=execution.skip_unreadable).to(arguments.device)
    if execution.grad_checkpointing:
        model[0].gradient_checkpointing_enable()
    objective = Objective(model, settings.objective, skip_unreadable=execution.skip_unreadable).to(
        arguments.device
    )
    trainer = build_trainer(settings, execution, arguments, objective, parts)
    # Everything that the settings name is there and fits: now they are those of the folder.
    keep_run(settings, execution, unreadable)
    if execution.cache_tokens is not None:
        read_tokens(model, parts, settings, execution.cache_tokens, execution)

    checkpoints = Path(arguments.output_dir)
    last = last_checkpoint(checkpoints, execution.processes)
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


def check_videos(parts: dict[str, Part], execution: Execution) -> dict[str, str]:
    """Find the videos that cannot be read, or take up what was found when the run began.

    Returns:
        Why, by their paths.

    Raises:
        ValueError: There are some, and they are not to be left out.
    """
    videos = [video for part in parts.values() for video in part.videos]
    unreadable = kept_unreadable(execution)
    if unreadable is None:
        unreadable = find_unreadable(videos, progress=execution.progress)
    if unreadable:
        message = describe(unreadable, len(videos))
        if not execution.skip_unreadable:
            raise ValueError(f"{message}\nLeave them out with --skip-unreadable")
        if rank_and_world()[0] == 0:
            logger.warning("%s\nThey are left out", message)
    return unreadable


def read_tokens(
    model: RunModel,
    parts: dict[str, Part],
    settings: RunSettings,
    folder: Path,
    execution: Execution,
) -> None:
    """Keep the tokens of all videos in a folder, and let the model read them from there."""
    # What loaders of data draw must not depend on how much is there already.
    with torch.random.fork_rng(devices=[]):
        stored = store_tokens(
            model,
            [video for part in parts.values() for video in part.videos],
            settings.videos,
            folder,
            dtype=getattr(torch, str(settings.cache_dtype)),
            workers=execution.workers,
            progress=execution.progress,
        )
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
    videos = (model.preprocess([video]) for video in train.videos)
    video = next((video for video in videos if video["attention_mask"].any()), None)
    if video is None:
        raise ValueError("no video of the training can be read")
    example = [model.preprocess([train.captions[0]]), video]
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


def training_arguments(
    settings: RunSettings, execution: Execution
) -> SentenceTransformerTrainingArguments:
    """Build the trainer's arguments.

    Raises:
        ValueError: The processes cannot share a batch, or one process has several GPUs.
    """
    processes = execution.processes
    if settings.batch_size % processes:
        raise ValueError(
            f"a batch of {settings.batch_size} cannot be shared by {processes} processes"
        )
    get_reporting_integration_callbacks(execution.report_to)  # refuses names it does not know
    cuda = torch.cuda.is_available()
    if cuda and processes == 1 and torch.cuda.device_count() > 1:
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs: start one process for each with torchrun "
            "--nproc-per-node, or choose one with CUDA_VISIBLE_DEVICES"
        )
    strategy = "epoch" if settings.validate else "no"
    return SentenceTransformerTrainingArguments(
        output_dir=str(execution.output / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // processes,
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
        ddp_backend=None if cuda or processes == 1 else "gloo",
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


def processes_of_launch() -> int:
    """Return the number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
