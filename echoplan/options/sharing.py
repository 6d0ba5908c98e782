"""echoplan_export_model, echoplan_export_onnx, echoplan_install_model"""

from __future__ import annotations

import argparse

from echoplan.errors import EchoPlanError
from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_dataset,
    add_models,
    add_output,
    add_overwrite,
    add_settings,
    add_size,
    add_trainer,
    existing_path,
    image_size,
    positive_amount,
)

_WHOSE = "whose models; name, id or folder name"


def export_model() -> Parser:
    """echoplan_export_model DATASET -o model.zip"""
    made = parser(
        "echoplan_export_model",
        "Write what echoplan_predict needs to one file, for other machines. Without -tr or -m it is the best "
        "configuration found, or the only model trained.",
        examples=[
            "echoplan_export_model CAMUS -o model.zip",
            "echoplan_export_model CAMUS -o model.zip -tr UNetTrainer -f 0 --half_precision",
        ],
        docs="docs/sharing_models.md",
    )
    add_dataset(made, _WHOSE, required=False)
    add_output(made, "the archive, model.zip, say", metavar="FILE")
    made.add_argument("--half_precision", action="store_true", help="keep the weights in 16 bits: half the size, "
                      "rounded")  # fmt: skip
    add_models(made)
    return made


def export_onnx() -> Parser:
    """echoplan_export_onnx DATASET -o FOLDER"""
    made = parser(
        "echoplan_export_onnx",
        "Write a trained model as ONNX, which takes a clip's bytes and gives masks without EchoPlan and PyTorch, and a "
        "card that says how. Without -tr or -m it is the best configuration found, or the only model trained.",
        examples=[
            "echoplan_export_onnx CAMUS -o onnx",
            "echoplan_export_onnx -m default -o onnx --frame_size 600 800 --spacing 0.3 0.3",
        ],
        docs="docs/sharing_models.md",
    )
    add_dataset(made, _WHOSE, required=False)
    add_output(made, "where the files go")
    add_models(made)
    made.add_argument("--no_postprocessing", action="store_true", help="leave the masks as the network makes them")
    made.add_argument("--frame_size", nargs="+", type=image_size, metavar="N|HxW",
                      help="take clips of this size, resizing inside; else frames on the model's grid")  # fmt: skip
    made.add_argument("--spacing", nargs=2, type=positive_amount, metavar=("ROW", "COLUMN"),
                      help="with --frame_size: size of their pixels in mm; square if not given")  # fmt: skip

    def settle(chosen: argparse.Namespace) -> None:
        sizes = chosen.frame_size or []
        if len(sizes) > 2 or (len(sizes) == 2 and any(height != width for height, width in sizes)):
            made.error("--frame_size is one size, or height and width: give 600x800 or 600 800")
        chosen.frame_size = (sizes[0][0], sizes[-1][1]) if sizes else None
        if chosen.spacing and not sizes:
            raise EchoPlanError("--spacing belongs to --frame_size", remedy="give both")

    made.checks.append(settle)
    return made


def install_model() -> Parser:
    """echoplan_install_model model.zip"""
    made = parser(
        "echoplan_install_model",
        "Install a model that echoplan_export_model wrote, or with -tr a network that a paper's authors published. "
        "Nothing of the file is run; what is not just as its manifest says is refused.",
        examples=[
            "echoplan_install_model model.zip",
            "echoplan_install_model deeplabv3.pt -tr EchoNetTrainer -d EchoNet",
        ],
        docs="docs/sharing_models.md",
    )
    made.add_argument("archive", type=existing_path, metavar="FILE", help="what was exported, or published weights")
    add_trainer(made, "whose published weights the file holds")
    add_settings(made, "with -tr: change a setting")
    add_size(made, "with -tr: side of the frames that the network saw", square=True)
    add_dataset(made, "what its dataset is called here; as there if not given", required=False, bare=False)
    add_overwrite(made, "replace a model that is there")
    made.add_argument("--trust_code", action="store_true", help="install a model that brings the code of its trainer; "
                      "it runs whenever the model is used")  # fmt: skip
    return made
