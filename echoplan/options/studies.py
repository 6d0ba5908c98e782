"""echoplan_study, echoplan_reproduce, echoplan_stress, echoplan_zero_shot"""

from __future__ import annotations

import argparse
from pathlib import Path

from echoplan.options import choices
from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_continue,
    add_coverage,
    add_dataset,
    add_device,
    add_ef_method,
    add_ef_reference,
    add_epochs,
    add_folds,
    add_model_folders,
    add_output,
    add_overwrite,
    add_plans_name,
    add_processes,
    add_settings,
    add_size,
    add_trainers,
    existing_path,
    named_path,
    positive_count,
)


def study() -> Parser:
    """echoplan_study DATASET -tr TRAINER ..."""
    made = parser(
        "echoplan_study",
        "How much do more patients, longer clips and another augmentation bring? Trains every combination of what is "
        "named, on every fold and seed, and draws learning curves. It costs as many whole trainings as the product of "
        "all lists (frame trainers are not repeated for clip lengths); --dry_run says how many, and how much disk. The "
        "same command goes on where it stopped, a longer list keeps what is finished.",
        examples=[
            "echoplan_study CAMUS -tr UNetTrainer PKEchoNetTrainer --train_sizes 10 50 100% --dry_run",
            "echoplan_study CAMUS -tr UNetTrainer -f 0 1 --seeds 0 1 --test_on EchoNet",
        ],
        docs="docs/studies.md",
    )
    add_dataset(made, "name, id or folder name")
    add_trainers(made, "trainer names, or path/to/file.py:Class", required=True)
    made.add_argument("--train_sizes", nargs="+", default=["100%"], metavar="N",
                      help="patients to train on: numbers, or shares such as 50%%; nested draws")  # fmt: skip
    made.add_argument("--clip_lengths", nargs="+", type=int, default=[], metavar="T",
                      help="frames a clip of the clip trainers, instead of the plan's")  # fmt: skip
    made.add_argument("--augmentation", nargs="+", default=[], metavar="POLICY",
                      help="generic, ultrasound, none, or parts joined by +, instead of the recipes' own")  # fmt: skip
    made.add_argument("--grid", action="append", default=[], metavar="KEY=A,B",
                      help="train with each value of a setting of the recipes, or of one's: TRAINER:KEY=A,B; several "
                      "grids multiply")  # fmt: skip
    add_folds(made, "of the dataset's splits, or all", default=(0,))
    made.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED",
                      help="of weights, order, augmentation, and of which patients are drawn")  # fmt: skip
    add_epochs(made)
    add_settings(made, "change a setting of all recipes, or of one: TRAINER:KEY=VALUE")
    made.add_argument("--test_on", nargs="+", default=[], metavar="DATASET",
                      help="also predict the labelled cases of these raw datasets and compare")  # fmt: skip
    made.add_argument("--test_every_size", action="store_true",
                      help="with the trainings on all sizes, not only the largest")  # fmt: skip
    made.add_argument("--name", default="study", help="the study's folder in results/<Dataset>/studies")
    _add_dry_run(made)
    add_continue(made)
    add_ef_method(made, "the rule for volumes; simpson if not given", default=None)
    add_ef_reference(made)
    add_plans_name(made)
    add_processes(made)
    add_device(made)
    return made


def reproduce() -> Parser:
    """echoplan_reproduce PAPER -d DATASET ..."""
    made = parser(
        "echoplan_reproduce",
        "Train a paper's tables anew, as its authors ran them (--protocol paper), and print each row beside what was "
        "printed, with the noise of seeds and patients, and what in the paper's protocol leaks. Begin with --dry_run. "
        "The same command goes on where it stopped.",
        examples=[
            "echoplan_reproduce e3sam2 -d CAMUS --dry_run",
            "echoplan_reproduce sam_echo -d EchoNet --tables 2 --seeds 0 --weights SAMTrainer=sam_vit_b.pth",
        ],
        docs="docs/reproducing.md",
    )
    made.add_argument("paper", choices=choices.PAPERS, help="which paper")
    add_dataset(made, "CAMUS or EchoNet-Dynamic", bare=False)
    made.add_argument("--tables", nargs="+", default=[], metavar="N", help="only these of the paper's tables")
    made.add_argument("--external", nargs="+", default=[], metavar="DATASET",
                      help="other converted datasets that tables also test on")  # fmt: skip
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of the trainings")
    add_epochs(made)
    add_settings(made, "change a setting of all recipes, or of one: TRAINER:KEY=VALUE")
    weights = made.add_argument("--weights", nargs="+", type=_weights_of, default=[], metavar="TRAINER=FILE",
                                help="pretrained weights that are not in the usual places")  # fmt: skip
    made.also(weights, "-pretrained_weights", "--pretrained_weights", "-weights")
    made.add_argument("--name", default="", help="the study's folder, where reproduce_<paper> has other settings")
    add_size(made, "of the network's input, instead of the papers'")
    made.add_argument("--frames", type=int, metavar="T", help="frames of a training clip instead of the papers'")
    _add_dry_run(made)
    add_continue(made)
    add_plans_name(made, default="Paper")
    add_processes(made)
    add_device(made)
    return made


def stress() -> Parser:
    """echoplan_stress MODEL -d DATASET -o OUT"""
    made = parser(
        "echoplan_stress",
        "How a model holds up on a labelled dataset under graded gain, haze, attenuation, depth, rotation, resolution "
        "and frame rate, and mirrored: Dice, EF, the quality flag and the intervals at each level, as a table and a "
        "figure. The same command goes on where it stopped.",
        examples=[
            "echoplan_stress default -d CAMUS -o stress",
            "echoplan_stress -m results/Dataset001_CAMUS/UNetTrainer__EchoPlans__frame -d EchoNet -o stress "
            "--changes gain haze --patients 20",
        ],
        docs="docs/model_zoo.md",
    )
    add_model_folders(made, bare=True)
    add_dataset(made, "name, id or folder name", bare=False)
    add_output(made, "the folder for the results")
    made.add_argument("--changes", nargs="+", default=[], metavar="NAME",
                      help=f"only these of {', '.join(choices.CHANGES)}")  # fmt: skip
    made.add_argument("--split", choices=("train", "val", "test", "all"), default="all", help="which labelled cases")
    made.add_argument("--patients", type=positive_count, metavar="N", help="how many patients, the first ones")
    add_folds(made, "which folds predict; all if not given")
    add_ef_method(made)
    add_coverage(made)
    add_continue(made)
    add_overwrite(made)
    add_device(made)
    return made


def zero_shot() -> Parser:
    """echoplan_zero_shot DATASET -m sam|medsam|lite_medsam|sam2"""
    made = parser(
        "echoplan_zero_shot",
        "Segment a dataset's labelled frames with a foundation model that was not trained on it, told by the labels "
        "where the structure is: the untrained row of a comparison.",
        examples=[
            "echoplan_zero_shot CAMUS -m medsam --split test",
            "echoplan_zero_shot CAMUS -m sam2 --prompt mask -f 0",
        ],
        docs="docs/foundation_models.md",
    )
    add_dataset(made, "a raw dataset: name, id or folder name")
    made.add_argument("-m", "--model", choices=choices.FOUNDATION_MODELS, required=True, help="the model")
    made.add_argument("--prompt", choices=choices.PROMPTS, default="box",
                      help="what the labels tell; points and masks: sam2")  # fmt: skip
    made.add_argument("--split", choices=("train", "test"), default="train", help="which of the labelled cases")
    add_folds(made, "only these folds' validation cases")
    made.add_argument("--variant", default="", help="sam: vit_b, vit_l, vit_h; sam2: tiny, small, base_plus, large; "
                      "the first if not given")  # fmt: skip
    add_size(made, "side of the model's input (its own is 1024, lite_medsam's 256); less is faster and worse",
             square=True)  # fmt: skip
    made.add_argument("--shrink", type=int, default=0, metavar="SIDE",
                      help="first shrink frames to SIDE x SIDE, as 112 in Chao et al.'s study; 0: not")  # fmt: skip
    made.add_argument("--boxes", choices=choices.BOXES, default=choices.BOXES[0], help="all but sam2: from a box's "
                      "first to its last pixel's centre, or as OpenCV's boundingRect, one pixel further")  # fmt: skip
    weights = made.add_argument("--weights", type=existing_path, metavar="FILE",
                                help="published weights, where the usual places do not have them")  # fmt: skip
    made.also(weights, "-pretrained_weights", "--pretrained_weights", "-weights")
    add_ef_method(made, "the rule of the EF printed; ef.csv, ef_camus.csv, ... hold all")
    add_continue(made, "keep what is finished, do the rest", old=["--continue_prediction"])
    add_overwrite(made)
    add_processes(made)
    add_device(made)
    return made


def _add_dry_run(to: Parser) -> None:
    to.add_argument("--dry_run", action="store_true", help="list what would be trained and what is missing, and stop")


def _weights_of(text: str) -> tuple[str, Path]:
    """An argparse type: TRAINER=FILE."""
    trainer, path = named_path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is no file")
    return trainer, path
