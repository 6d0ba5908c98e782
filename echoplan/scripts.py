"""The console scripts of setup.cfg; what each does lies in its room's commands.py."""

from __future__ import annotations

from echoplan.cli import script

convert_dataset = script("echoplan.datasets.commands:convert_dataset")
make_phantom = script("echoplan.datasets.commands:make_phantom")
extract_fingerprint = script("echoplan.experiment_planning.commands:extract_fingerprint")
plan_experiment = script("echoplan.experiment_planning.commands:plan_experiment")
plan_and_preprocess = script("echoplan.experiment_planning.commands:plan_and_preprocess")
preprocess = script("echoplan.preprocessing.commands:preprocess")
train = script("echoplan.training.commands:train")
compare_prompts = script("echoplan.training.commands:compare_prompts")
zero_shot = script("echoplan.inference.foundation.commands:zero_shot")
find_best_configuration = script("echoplan.inference.commands:find_best_configuration_command")
predict = script("echoplan.inference.commands:predict")
ensemble = script("echoplan.inference.commands:ensemble")
apply_postprocessing = script("echoplan.inference.commands:apply_postprocessing_command")
export_model = script("echoplan.inference.archive.commands:export_model_command")
export_onnx = script("echoplan.inference.deployment.commands:export_onnx_command")
install_model = script("echoplan.inference.archive.commands:install_model_command")
study = script("echoplan.inference.study.commands:study")
reproduce = script("echoplan.inference.study.commands:reproduce")
evaluate_folder = script("echoplan.evaluation.commands:evaluate_folder_command")
report = script("echoplan.evaluation.commands:report_command")
compare = script("echoplan.evaluation.commands:compare_command")
doctor = script("echoplan.doctor:doctor")
