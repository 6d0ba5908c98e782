"""The building itself: floors, house rules, and what the installed package holds."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "echoplan": 0, "preprocessing": 1, "evaluation": 1, "training": 2, "experiment_planning": 3, "inference": 4,
}  # fmt: skip
STAGES = [room for room in FLOORS if room != "echoplan"]
MAY_PRINT = ("commands.py", "cli.py", "doctor.py")
MAX_FILE, MAX_FUNCTION = 400, 60


@cache
def modules():
    """Dotted name as installed -> file, of all code that users get."""
    found = {}
    for room in FLOORS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if room == "echoplan" else ("echoplan", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(name):
    """The room of a module's dotted name; None for other people's packages."""
    parts = name.split(".")
    if parts[0] in STAGES:
        return parts[0]
    if parts[0] != "echoplan":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in STAGES else "echoplan"


@cache
def imports(name, path):
    """(line, full dotted name, relative?) of everything a module imports, in functions and by import_module too."""
    return tuple(_imports(name, path))


def _imports(name, path):
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            # "from echoplan import training" names the room only after the import
            yield from ((node.lineno, f"{base}.{alias.name}", bool(node.level)) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.JoinedStr):  # f"sam2.{name}" names the package
                first = first.values[0]
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value), False


def called(node):
    """`c` of the call a.b.c()."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def where(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def all_imports():
    for name, path in modules().items():
        for line, target, relative in imports(name, path):
            if room_of(target) is not None:
                yield room_of(name), room_of(target), relative, where(path, line)


def test_the_checks_below_see_the_code():
    assert len(modules()) > 60
    assert {room_of(name) for name in modules()} == set(FLOORS)
    seen = {(room, target) for room, target, _, _ in all_imports()}
    assert {("training", "preprocessing"), ("inference", "evaluation"), ("evaluation", "echoplan")} <= seen


def test_every_import_of_our_own_is_there():
    """An older install beside the checkout would serve modules that are gone."""
    files = (ROOT / "tests").rglob("*.py")
    tests = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    gone = [
        f"{where(path, line)}: {target}"
        for name, path in (modules() | tests).items()
        for line, target, _ in imports(name, path)
        if room_of(target) is not None and not modules().keys() & {target, target.rpartition(".")[0]}
    ]
    assert gone == []


def test_no_import_goes_up_a_floor():
    wrong = [
        f"{place}: {room} imports {target}"
        for room, target, _, place in all_imports()
        if room != target and FLOORS[target] >= FLOORS[room]
    ]
    assert wrong == []


def test_stages_import_stages_relatively_and_the_ground_floor_absolutely():
    wrong = []
    for room, target, relative, place in all_imports():
        if target in STAGES and not relative:
            wrong.append(f"{place}: {target} must be imported relatively")
        if room in STAGES and target == "echoplan" and relative:
            wrong.append(f"{place}: the ground floor must be imported absolutely")
    assert wrong == []


def test_no_circle_between_stages():
    edges = {room: {target for source, target, _, _ in all_imports() if source == room != target} for room in FLOORS}
    assert circles(edges) == set()


def parents(name):
    """The packages that hold a module, the outermost first."""
    return [name[:end] for end, letter in enumerate(name) if letter == "."]


def needed_modules(name, path):
    """Our modules that Python or a type checker reads before this one is whole, lazy and type-checking imports too."""
    for _, target, _ in imports(name, path):
        module = target if target in modules() else target.rpartition(".")[0]
        if module in modules():
            yield module
            yield from set(parents(module)) - set(parents(name))  # their __init__.py runs first


def circles(edges):
    """The nodes that cannot be put in an order, each after what it needs."""
    while edges:
        free = {node for node, targets in edges.items() if not targets & edges.keys() - {node}}
        if not free:
            break
        edges = {node: targets for node, targets in edges.items() if node not in free}
    return set(edges)


def test_no_circle_between_files():
    edges = {name: set(needed_modules(name, path)) for name, path in modules().items()}
    assert {"echoplan.errors", "echoplan.files"} <= edges["echoplan.dataset"]
    in_a_circle = circles(edges)
    rebuilt = {
        name for name in in_a_circle if "training" in name or "experiment_planning" in name or "inference" in name
    }
    assert in_a_circle - rebuilt == set()


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_the_ignored_label_imports_nothing():
    assert imports("echoplan.labels", modules()["echoplan.labels"]) == ()


def test_house_rules():
    wrong = []
    for path in modules().values():
        if path.read_text(encoding="utf-8").count("\n") > MAX_FILE:
            wrong.append(f"{where(path, 1)}: more than {MAX_FILE} lines")
        for node in ast.walk(tree(path)):
            wrong += [f"{where(path, node.lineno)}: {problem}" for problem in problems(node, path)]
    assert wrong == []


def problems(node, path):
    """What the house rules say against one node of the syntax tree."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
        yield f"{node.name} has more than {MAX_FUNCTION} lines"
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
        if names & {"cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}:
            yield "pickle"
        if getattr(node, "module", None) == "pickle" or any(
            item.name == "pickle" and item.asname for item in node.names
        ):
            yield "pickle under another name"
    # PyTorch's refusal of an unsafe file is a pickle.UnpicklingError; to catch it is no use of pickle
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError":
        yield "pickle"
    if isinstance(node, ast.Call):
        options = {item.arg: item.value for item in node.keywords}
        source = ast.unparse(node.func)
        if source == "print" and not path.name.endswith(MAY_PRINT):
            yield "print outside commands"
        if source == "torch.load" and getattr(options.get("weights_only"), "value", None) is not True:
            yield "torch.load without weights_only=True"
        if source in ("np.load", "numpy.load") and getattr(options.get("allow_pickle"), "value", False) is not False:
            yield "np.load with pickle"
        if called(node) in ("load_state_dict_from_url", "hf_hub_download"):
            yield "a download"
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        yield "bare except"
    if isinstance(node, ast.ClassDef) and not node.decorator_list:
        content = [item for item in node.body if not isinstance(item, ast.Expr)]  # but the docstring
        if len(content) == 1 and isinstance(content[0], ast.Assign | ast.AnnAssign) and content[0].value:
            yield "a class whose only content is a constant"
    if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
        yield "a stub"


def layout_names():
    """What echoplan/layout.py calls files and folders."""
    assigned = (node.value for node in tree(modules()["echoplan.layout"]).body if isinstance(node, ast.Assign))
    constants = (item for value in assigned if not isinstance(value, ast.Call) for item in ast.walk(value))
    return {item.value for item in constants if isinstance(item, ast.Constant)}


def paths_spelled(source):
    """(line, text) of literals that are a path, or a part of one, with a name that only layout.py should spell.

    Sentences for people may name a file; a word that is a folder's name, too, counts where a path is put together.
    """
    words = {name for name in layout_names() if name.isalpha() and name.islower()}
    names = [re.escape(name) for name in layout_names() - words] + [r"checkpoint_(?:final|latest|best)\.pth"]
    pattern = rf"(?<![\w.])(?:{'|'.join(names)})(?![\w.])"
    for node in ast.walk(source):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if not re.search(r"\s", text) and (re.search(pattern, text) or ("/" in text and words & set(text.split("/")))):
            yield node.lineno, text
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            yield from ((node.lineno, word) for word in words if word == node.right.value)


def test_only_layout_spells_the_names_of_files():
    spelled = [
        f"{where(path, line)}: {text}"
        for name, path in modules().items()
        if name != "echoplan.layout"
        for line, text in paths_spelled(tree(path))
    ]
    assert spelled == []


def test_a_spelled_path_is_seen():
    code = 'a / "validation"\nf("fold_*/checkpoint_final.pth")\nx / "plans.json"\ng("plans.json is gone")\nh("dicom")'
    assert sorted(paths_spelled(ast.parse(code))) == [
        (1, "validation"), (2, "fold_*/checkpoint_final.pth"), (3, "plans.json"),
    ]  # fmt: skip


def test_no_notes_to_oneself_are_left():
    left = [
        where(path, number)
        for path in modules().values()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)
    ]
    assert left == []


def setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def lines(text):
    return [line.strip() for line in text.split("\n") if line.strip()]


def test_setup_lists_every_package_on_disk():
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    listed = lines(setup_cfg()["options"]["packages"])
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == packages


def test_mypy_sees_every_stage_under_its_installed_name():
    links = {path.name: path.resolve() for path in (ROOT / ".mypy" / "echoplan").iterdir()}
    assert links == {stage: ROOT / stage for stage in STAGES}
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    assert set(re.findall(r'"(.*?)"', listed)) == {"echoplan"} | {f"echoplan.{stage}" for stage in STAGES}


# What Python calls otherwise than its index of packages does.
DISTRIBUTIONS = {
    "PIL": "pillow", "skimage": "scikit-image", "acvl_utils": "acvl-utils", "segment_anything": "segment-anything",
}  # fmt: skip
# Required, though no file imports it: what loads it, and for what.
PLUGINS = {
    "pylibjpeg": "pydicom finds it by itself, to decode compressed frames",
    "pyjpegls": "pydicom finds it by itself, for JPEG-LS",
    "pylibjpeg-openjpeg": "pylibjpeg finds it by itself, for JPEG 2000",
}


def required(*extras):
    """The packages that setup.cfg asks for: always, and for some extras."""
    setup = setup_cfg()
    options = setup["options.extras_require"]
    listed = lines(setup["options"]["install_requires"]) + [line for name in extras for line in lines(options[name])]
    return {re.split(r"[\[><=]", line)[0].lower() for line in listed}


def imported_packages():
    """(other people's package as setup.cfg calls it, where it is imported)."""
    for name, path in modules().items():
        for line, target, _ in imports(name, path):
            top = target.split(".")[0]
            if top not in sys.stdlib_module_names and top not in FLOORS:
                yield DISTRIBUTIONS.get(top, top).lower(), where(path, line)


def test_every_package_the_code_imports_is_required():
    extras = [name for name in setup_cfg()["options.extras_require"] if name != "test"]
    assert [place for package, place in imported_packages() if package not in required(*extras)] == []


def test_the_libraries_that_the_product_is_built_on_are_used():
    chosen = {"torch", "sam2", "simpleitk", "batchgenerators", "acvl-utils", "numpy", "pandas", "scipy", "tqdm"}
    assert chosen <= required() & {package for package, _ in imported_packages()}


def test_every_required_package_is_imported():
    imported = {package for package, _ in imported_packages()}
    assert required() - imported == set(PLUGINS)


def test_a_clone_called_echoplan_is_the_package_for_the_folder_above_it(tmp_path):
    (tmp_path / "echoplan").symlink_to(ROOT)
    code = "import echoplan.labels, echoplan.training; print(echoplan.__version__, echoplan.training.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    version, file = run.stdout.split()
    assert version and file == str(ROOT / "training" / "__init__.py")


def test_every_folder_with_code_is_a_package():
    assert [str(path) for path in modules().values() if not (path.parent / "__init__.py").is_file()] == []


def data_files():
    """Path as installed of every file in the rooms that is no code."""
    for room in FLOORS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith("."):
                inside = path.relative_to(ROOT)
                yield (inside if room == "echoplan" else "echoplan" / inside).as_posix()


def test_every_data_file_is_listed_and_every_pattern_is_used():
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, text in setup_cfg()["options.package_data"].items()
        for pattern in lines(text)
    ]
    files = list(data_files())
    assert [file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(files, pattern)] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked, built from a copy so that the checkout stays clean."""
    pytest.importorskip("setuptools", minversion="77")
    copy, made = tmp_path_factory.mktemp("source") / "echoplan", tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs")
    shutil.copytree(ROOT, copy, ignore=ignore)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        made,
        ".",
    ]
    run = subprocess.run(build, cwd=copy, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = made.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(made / "unpacked")
    return made / "unpacked"


def test_the_wheel_holds_all_code_and_data_and_nothing_else(wheel):
    packed = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    code = {
        f"{name.replace('.', '/')}{'/__init__' if path.name == '__init__.py' else ''}.py"
        for name, path in modules().items()
    }
    assert {path for path in packed if path.startswith("echoplan/")} == code | set(data_files())
    others = {path.split("/")[0] for path in packed} - {"echoplan"}
    assert len(others) == 1 and others.pop().endswith(".dist-info")
    assert any(path.endswith("/LICENSE") for path in packed)


def test_every_console_script_of_the_wheel_can_be_called(wheel, tmp_path):
    (entry_points,) = wheel.glob("*.dist-info/entry_points.txt")
    installed = configparser.ConfigParser()
    installed.read(entry_points)
    scripts = dict(installed["console_scripts"])
    listed = lines(setup_cfg()["options.entry_points"]["console_scripts"])
    assert scripts == dict(re.split(r"\s*=\s*", line) for line in listed)
    check = (
        "import importlib, sys, echoplan\n"
        "assert echoplan.__file__.startswith(sys.argv[1]), echoplan.__file__\n"
        "for target in sys.argv[2:]:\n"
        "    module, name = target.split(':')\n"
        "    module = importlib.import_module(module)\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
        "    assert callable(getattr(module, name)), target\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", check, str(wheel), *scripts.values()]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


PACKAGES = [name for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_offers_is_there_and_explained(package):
    module = importlib.import_module(package)
    assert module.__doc__, f"{package} has no docstring"
    offered = getattr(module, "__all__", [])
    assert sorted(offered) == sorted(set(offered))
    assert [name for name in offered if not hasattr(module, name)] == []
    silent = []
    for name in offered:
        item = getattr(module, name)
        if inspect.isfunction(item) or inspect.isclass(item):
            written = item.__dict__.get("__doc__") if inspect.isclass(item) else item.__doc__
            if not written or written.startswith(f"{name}("):  # what dataclasses write for themselves
                silent.append(name)
    assert silent == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print(1)", "print"), ("import dill", "pickle"), ("import pickle\npickle.load(f)", "pickle"),
        ("from pickle import loads", "pickle"), ("torch.load(f)", "weights_only"),
        ("torch.load(f, weights_only=False)", "weights_only"), ("np.load(f, allow_pickle=True)", "pickle"),
        ("try:\n    f()\nexcept:\n    pass", "bare except"), ("def f():\n    raise NotImplementedError", "stub"),
        ("def f():\n" + "    g()\n" * 60, "more than 60 lines"),
        ("class R34(Net):\n    'ResNet.'\n    backbone: str = 'resnet34'", "only content"),
    ],
)  # fmt: skip
def test_the_house_rules_can_be_broken(code, problem):
    found = [text for node in ast.walk(ast.parse(code)) for text in problems(node, ROOT / "echoplan" / "x.py")]
    assert len(found) == 1 and problem in found[0]


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f, weights_only=True)", "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    g()",
        "def f():\n" + "    g()\n" * 59, "logger.info(1)", "np.load(f)",
        "@dataclass\nclass A:\n    a: int = 1", "class A(NamedTuple):\n    a: int",
        "class A(Exception):\n    'Broken.'",
    ],
)  # fmt: skip
def test_the_house_rules_can_be_kept(code):
    assert [text for node in ast.walk(ast.parse(code)) for text in problems(node, ROOT / "echoplan" / "x.py")] == []


def test_imports_are_seen_in_every_form(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import echoplan.training.fold\nfrom echoplan import inference\nfrom ..evaluation import folder\n"
        "from ...preprocessing.store import ClipStore\ndef f():\n    importlib.import_module('echoplan.training')\n"
        "    importlib.import_module(f'sam2.{name}')\n"
    )
    seen = [(target, relative) for _, target, relative in imports("echoplan.training.data.x", path)]
    assert sorted(seen) == [
        ("echoplan.inference", False), ("echoplan.preprocessing.store.ClipStore", True), ("echoplan.training", False),
        ("echoplan.training.evaluation.folder", True), ("echoplan.training.fold", False),
        ("sam2.", False),
    ]  # fmt: skip
    assert [room_of(target) for target, _ in sorted(seen)] == [
        "inference", "preprocessing", "training", "training", "training", None,
    ]  # fmt: skip


def test_commands_start_without_what_only_some_of_them_need():
    """Each of these takes half a second to six to import, and every command and every worker would wait for it."""
    rooms = [room for room in STAGES if (ROOT / room / "commands.py").is_file()]
    slow = ("torch._dynamo", "torchvision", "triton", "scipy.stats", "matplotlib", "batchgenerators", "monai", "sam2",
            "highdicom", "pandas", "ray")  # fmt: skip
    code = (
        "import importlib, sys\n"
        f"for room in {rooms}: importlib.import_module(f'echoplan.{{room}}.commands')\n"
        f"print(*(name for name in {slow} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert len(rooms) == len(STAGES) and done.stdout.split() == []
