"""echoplan_predict, echoplan_find_best_configuration, echoplan_ensemble, echoplan_apply_postprocessing"""

from __future__ import annotations

import argparse

from echoplan.errors import EchoPlanError
from echoplan.options import choices
from echoplan.options.parser import Parser, parser
from echoplan.options.shared import (
    add_continue,
    add_coverage,
    add_dataset,
    add_device,
    add_ef_method,
    add_engine,
    add_find_phases,
    add_folds,
    add_models,
    add_output,
    add_overwrite,
    add_processes,
    add_trainers,
    existing_path,
    positive_count,
)


def predict() -> Parser:
    """echoplan_predict -i IN -o OUT"""
    made = parser(
        "echoplan_predict",
        "Segment clips and measure the ejection fraction. With nothing or one model trained, or a best configuration "
        "found, -i and -o are all it needs.",
        examples=[
            "echoplan_predict -i clip.dcm -o out",
            "echoplan_predict -i clips -o out -d CAMUS --overlays",
            "echoplan_predict -i clips -o out -m default",
        ],
        docs="docs/formats.md",
    )
    made.add_argument("-i", "--input", type=existing_path, required=True, metavar="IN", help="a clip, or a folder of "
                      "clips")  # fmt: skip
    add_output(made, "the folder for the results")
    add_dataset(made, "whose models; name, id or folder name", required=False, bare=False)
    add_models(made)
    made.add_argument("--like", metavar="DATASET", help="of a joint model: treat all clips as those of this dataset")
    add_continue(made, "keep what still holds, do the rest", old=["--continue_prediction"])
    add_overwrite(made)
    _add_save_probabilities(made)
    made.add_argument("--dicom", action="store_true", help="also write DICOM segmentations and reports of DICOM clips")
    made.add_argument("--dicom_doubtful", action="store_true", help="with --dicom: reports of rows to check, too")
    made.add_argument("--overlays", action="store_true", help="also write OUT/overlays/<case>.mp4 with the outline")
    made.add_argument("--no_postprocessing", action="store_true", help="leave the masks as the network makes them")
    made.add_argument("--mirroring", action="store_true", help="average over the flips the plan allows; slower")
    made.add_argument("--mixed_precision", action=argparse.BooleanOptionalAction,
                      help="faster, with other probabilities in the third digit; on GPUs with bfloat16 if not given",
                      )  # fmt: skip
    add_ef_method(made)
    add_find_phases(made)
    add_coverage(made)
    made.add_argument("--num_parts", type=positive_count, metavar="N",
                      help="with --part_id: predict one of N parts of the clips")  # fmt: skip
    made.add_argument("--part_id", type=int, metavar="K", help="the part's number, 0 to N - 1")
    made.add_argument("--backend", choices=choices.BACKENDS, default=choices.BACKENDS[0], help="what computes the "
                      "networks; onnx and openvino from files that are written beside the checkpoints at first",
                      )  # fmt: skip
    add_processes(made)
    add_device(made)
    add_engine(made, "actors", "cpus_per_actor")
    made.add_argument("--actors", type=positive_count, metavar="N",
                      help="with --engine: how many load the model; not given: one a GPU, or where there is none as "
                      "many as have their cores")  # fmt: skip
    made.add_argument("--cpus_per_actor", type=positive_count, metavar="N",
                      help="with --engine: cores of each; 1 if not given")  # fmt: skip
    made.checks.append(_check_predict)
    return made


def _check_predict(chosen: argparse.Namespace) -> None:
    parts = chosen.num_parts, chosen.part_id
    if parts != (None, None) and None in parts:
        raise EchoPlanError("--num_parts and --part_id belong together", remedy="--num_parts 4 --part_id 0, say")
    if chosen.num_parts and (chosen.dicom or chosen.overlays):
        raise EchoPlanError(
            "--dicom and --overlays belong to the call that measures all parts",
            remedy="give them to echoplan_predict --c, once the parts are done",
        )
    if chosen.dicom_doubtful and not chosen.dicom:
        raise EchoPlanError("--dicom_doubtful belongs to --dicom", remedy="give both")


def find_best_configuration() -> Parser:
    """echoplan_find_best_configuration DATASET"""
    made = parser(
        "echoplan_find_best_configuration",
        "Compare the trained models of a dataset and ensembles of two on cross-validation; choose the postprocessing.",
        examples=[
            "echoplan_find_best_configuration CAMUS",
            "echoplan_find_best_configuration CAMUS -tr UNetTrainer PKEchoNetTrainer --disable_ensembling",
        ],
        docs="docs/comparing.md",
    )
    add_dataset(made, "name, id or folder name")
    add_trainers(made, "only these trainers")
    add_folds(made, "only these folds, where not all are trained")
    made.add_argument("--disable_ensembling", action="store_true", help="compare single models only")
    add_overwrite(made, "replace a choice that was made among more folds, trainers or ensembles")
    add_processes(made)
    return made


def ensemble() -> Parser:
    """echoplan_ensemble -i FOLDER1 FOLDER2 ... -o OUT"""
    made = parser(
        "echoplan_ensemble",
        "Average the probabilities of several predictions of the same clips.",
        examples=[
            "echoplan_ensemble -i out_unet out_pkechonet -o out_both",
            "echoplan_ensemble -i out_a out_b out_c -o out_all --save_probabilities",
        ],
        docs="docs/formats.md",
    )
    made.add_argument("-i", "--input", dest="inputs", nargs="+", type=existing_path, required=True, metavar="FOLDER",
                      help="folders that echoplan_predict --save_probabilities wrote")  # fmt: skip
    add_output(made, "the folder for the masks")
    _add_save_probabilities(made)
    add_processes(made)
    return made


def apply_postprocessing() -> Parser:
    """echoplan_apply_postprocessing -i MASKS -o OUT --pp postprocessing.json"""
    made = parser(
        "echoplan_apply_postprocessing",
        "Apply postprocessing steps to a folder of masks.",
        examples=[
            "echoplan_apply_postprocessing -i out -o out_clean --pp postprocessing.json",
            "echoplan_apply_postprocessing -i out_both -o out_clean --pp postprocessing.json -np 0",
        ],
        docs="docs/formats.md",
    )
    made.add_argument("-i", "--input", type=existing_path, required=True, metavar="MASKS", help="a folder of masks")
    add_output(made, "the folder for the new masks")
    made.add_argument("--pp", type=existing_path, required=True, metavar="FILE", help="a postprocessing.json")
    add_processes(made)
    return made


def _add_save_probabilities(to: Parser) -> None:
    to.add_argument("--save_probabilities", action="store_true", help="also write <case>.npz")
