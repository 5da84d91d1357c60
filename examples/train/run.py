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
from transformers.utils.logging import disable_progress_bar

from examples.train.checkpoints import last_checkpoint
from examples.train.data import Part, load_parts
from examples.train.evaluation import RetrievalEvaluator
from examples.train.objective import Objective
from examples.train.settings import Execution, RunSettings, check_same_run
from examples.train.trainer import RetrievalTrainer, SaveEvery, freeze_unused
from muse_adapter import MultiScaleMamba
from muse_adapter.files import write_whole
from muse_adapter.sentence_transformers import VideoTransformer

logger = logging.getLogger(__name__)


def run(settings: RunSettings, execution: Execution) -> dict[str, Any]:
    """Train, or go on from the last checkpoint; then test the best epoch.

    Returns:
        What `results.json` holds: the metrics of the test, those of the validation after each
        epoch, the numbers of captions and videos, and the settings.
    """
    parts = load_parts(settings)  # first: a wrong path is none of a run's settings
    arguments = training_arguments(settings, execution)
    check_same_run(settings, execution)
    results = execution.output / "results.json"
    if results.is_file():
        return json.loads(results.read_text())
    if not execution.progress:
        disable_progress_bar()
    torch.manual_seed(settings.seed)
    model = build_model(settings).to(arguments.device)
    if execution.grad_checkpointing:
        model[0].gradient_checkpointing_enable()
    objective = Objective(model, settings.objective).to(arguments.device)
    trainer = build_trainer(settings, execution, arguments, objective, parts)

    checkpoints = Path(arguments.output_dir)
    last = last_checkpoint(checkpoints, execution.processes)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    history = [
        {
            name.removeprefix("eval_"): value
            for name, value in entry.items()
            if name == "epoch" or name.startswith(("eval_t2v", "eval_v2t"))
        }
        for entry in trainer.state.log_history
        if "eval_t2v_R@1" in entry
    ]
    best = trainer.state.best_model_checkpoint
    if trainer.is_world_process_zero():
        model.save_pretrained(str(execution.output / "last"))
    if settings.validate:
        if best is None:
            raise RuntimeError(f"no epoch was evaluated in {checkpoints}")
        trainer.load(checkpoints / Path(best).name)
        if trainer.is_world_process_zero():
            model.save_pretrained(str(execution.output / "best"))
    test = evaluate_test(model, objective, parts["test"], execution)
    result = {
        "test": test,
        "tested": "best" if settings.validate else "last",
        "validation": history,
        "steps": trainer.state.global_step,
        "sizes": {
            name: {"captions": len(part.captions), "videos": len(part.videos)}
            for name, part in parts.items()
        },
        "settings": dataclasses.asdict(settings),
        "processes": execution.processes,
    }
    if trainer.is_world_process_zero():
        write_whole({results: (json.dumps(result, indent=2) + "\n").encode()})
    return result


def build_model(settings: RunSettings) -> SentenceTransformer:
    """Build the model: a pretrained one with a new head."""
    module = VideoTransformer(
        settings.model, num_frames=settings.frames, fps=settings.fps, freeze=settings.freeze
    )
    module.max_seq_length = module.text_inputs.full_length or min(
        settings.words, module.max_seq_length
    )
    config = dataclasses.replace(module.head.config, depth=settings.depth, dropout=settings.dropout)
    if config != module.head.config:
        module.encoder.head = MultiScaleMamba(config)
    return SentenceTransformer(modules=[module])


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
    example = [model.preprocess([train.captions[0]]), model.preprocess([files[0]])]
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
