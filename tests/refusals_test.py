"""Wrong inputs of every command: each ends in one short line that names what is wrong, and writes nothing.

All run in this process: a line of the tables below takes milliseconds. `PROGRAMS` has the commands, `CASES` what is
typed and a part of what it is answered; both grow with every command.
"""

import os
import shlex
import shutil

import jax
import numpy as np
import pytest

from analysis import fake_runs
import golden
import runs
from smskd_jax import compare, evaluate, export, import_torch, main, report, store, study
from smskd_jax.losses.__main__ import main as losses
from smskd_jax.models import MODELS, torch_weights
from smskd_jax.runtime import compilation_cache
import torch_files

PROGRAMS = {
  "main": main.main,
  "study": study.main,
  "report": report.main,
  "compare": compare.main,
  "evaluate": evaluate.main,
  "export": export.main,
  "import_torch": import_torch.main,
  "store": store.main,
  "losses": losses,
}
SMOKE, STUDY = (
  "main --workdir=new --config=configs/smoke.py",
  "study --workdir=new --config=configs/studies/smoke.py",
)

# Config files with a mistake: text by name. Lines count from 1.
FILES = {
  "syntax.py": "def get_config(:\n  pass\n",
  "indent.py": "def get_config():\n  a = 1\n    b = 2\n",
  "name.py": "def get_config():\n  return undefined_name\n",
  "type.py": "def get_config():\n  return len(3)\n",
  "call.py": "from smskd_jax.config import stage\ndef get_config():\n  return stage()\n",
  "zero.py": "x = 1 / 0\n",
  "import.py": "import no_such_module\n",
  "nulls.py": "a = '\0'\n",
  "latin.py": b"# \xe9\n",
  "none.py": "def get_config():\n  pass\n",
  "list.py": "def get_config():\n  return [1, 2]\n",
  "missing.py": "def config():\n  return {}\n",
  "variable.py": "get_config = 3\n",
  "two.py": "def get_config(a, b):\n  return {}\n",
  "needs.py": "def get_config(arg):\n  return {}\n",
  "long.py": "def get_config():\n  raise RuntimeError('x' * 5000 + '\\nsecond line')\n",
  "helper_user.py": "import broken_helper\n",
  "epoch.py": "from smskd_jax.config import stage\ndef get_config():\n  return stage('student', epoch=3)\n",
  "teachers.py": (
    "from smskd_jax.config import stage\ndef get_config():\n  return stage('student', teachers='teacher')\n"
  ),
  "method.py": "from smskd_jax.config import method\ndef get_config():\n  return method('kd', temprature=3)\n",
  "network.py": "from smskd_jax.config import network\ndef get_config():\n  return network('custom:nowhere:Net')\n",
  "broken_network.py": (
    "from smskd_jax.config import network\ndef get_config():\n  return network('custom:broken_helper:Net')\n"
  ),
  "empty.py": "from smskd_jax.config import experiment\ndef get_config():\n  return experiment()\n",
  "unknown.py": "def get_config():\n  return {'sead': 1}\n",
  "no_variants.py": "from smskd_jax.config import study\ndef get_config():\n  return study(variants={})\n",
  "no_seeds.py": (
    "import runs\nfrom smskd_jax.config import study\n"
    "def get_config():\n  return study(variants={'a': runs.tiny('resnet8')}, seeds=())\n"
  ),
}

FILE_CASES = [
  ("syntax.py", "syntax.py:1: SyntaxError: invalid syntax"),
  ("indent.py", "indent.py:3: IndentationError: unexpected indent"),
  ("name.py", "name.py:2: NameError: name 'undefined_name' is not defined"),
  ("type.py", "type.py:2: TypeError: object of type 'int' has no len()"),
  ("call.py", "call.py:3: TypeError: stage() missing 1 required positional argument: 'network'"),
  ("zero.py", "zero.py:1: ZeroDivisionError: division by zero"),
  ("import.py", "import.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
  ("nulls.py", "nulls.py"),
  ("latin.py", "latin.py"),
  ("none.py", "get_config of none.py returns None; it has to return experiment(...)"),
  ("list.py", "get_config of list.py returns [1, 2]; it has to return"),
  ("missing.py", "missing.py has no function get_config"),
  ("variable.py", "variable.py has no function get_config"),
  ("two.py:a", "two.py: TypeError: get_config() missing 1 required positional argument: 'b'"),
  ("needs.py", "needs.py: TypeError: get_config() missing 1 required positional argument: 'arg'"),
  ("long.py", "long.py:2: RuntimeError: xxx"),
  ("helper_user.py", "helper_user.py:1: NameError: name 'undefined_there' is not defined (raised in "),
  ("epoch.py", "epoch.py:3: stage: unknown 'epoch'; did you mean 'epochs'?"),
  ("teachers.py", "teachers.py:3: stage.teachers: 'teacher' is not of type tuple; an example is ('a', 'b')"),
  ("method.py", "method.py:3: method: unknown 'temprature'; did you mean 'temperature'?"),
  (
    "network.py",
    "network.py:3: network.model: custom:nowhere:Net: cannot import nowhere: No module named 'nowhere'",
  ),
  (
    "broken_network.py",
    "custom:broken_helper:Net: cannot import broken_helper: NameError: name 'undefined_there'",
  ),
  ("empty.py", "config.stages: there are none"),
  ("unknown.py", "config: unknown 'sead'; did you mean 'seed'?"),
  ("gone.py", "--config: there is no file gone.py"),
  ("configs", "--config: there is no file configs"),
  ("", "--config: there is no file"),
]

ARGUMENT_CASES = [
  ("smskd.py:stages=kdd+fitnet", "config argument stages: unknown 'kdd'; did you mean 'kd'?"),
  ("smskd.py:teacher=ResNet-18", "network.model: unknown 'ResNet-18'; did you mean 'ResNet18'?"),
  ("smskd.py:epochs=ten", "config argument epochs: 'ten' is not of type int"),
  ("smskd.py:epochs=", "config argument epochs: '' is not of type int"),
  ("smskd.py:epochs", "config argument epochs: '' is not of type int"),
  ("smskd.py:colour=red", "config argument: unknown 'colour' (known: "),
  ("smskd.py:protocol=papr", "config argument protocol: unknown 'papr'; did you mean 'paper'?"),
  ("smskd.py:mode=jiont", "config argument mode: unknown 'jiont'; did you mean 'joint'?"),
  ("smskd.py:stages=", "config argument stages"),
  ("smskd.py:epochs=1,stages=kd+fitnet,protocol=equal", "config argument epochs: 1"),
  ("smskd.py:transition=500", "config argument transition: 500"),
  ("smskd.py:weighting=teacher_tpc", "unknown 'teacher_tpc'; did you mean 'teacher_tcp'?"),
  ("smskd.py:optimizer=adamm", "unknown 'adamm'"),
  ("smskd.py:validation=many", "config argument validation: 'many' is not of type float"),
  ("quickstart.py:epochs=3", "configs/quickstart.py takes no arguments; leave out ':epochs=3'"),
  ("quickstart.py:", "configs/quickstart.py takes no arguments; leave out ':'"),
  ("survey.py:mode=kkd", "config argument mode: unknown 'kkd'; did you mean 'kd'?"),
  ("survey.py:temperature=hot", "config argument temperature: 'hot' is not of type float"),
  ("survey.py:mode=kdparam,temperatures=1+x", "config argument temperatures"),
  ("survey.py:attention=perhaps", "config argument attention: 'perhaps' is not of type bool"),
  ("imagenet.py:stages=dkdd", "config argument stages: unknown 'dkdd'; did you mean 'dkd'?"),
  ("born_again.py:generations=none", "config argument generations: 'none' is not of type int"),
]

STUDY_CASES = [
  ("table1.py:pairs=some", "config argument: unknown 'pairs'; did you mean 'pair'?"),
  ("table1.py:seeds=a+b", "config argument seeds: 'a+b' are not whole numbers joined by +"),
  ("weighting.py:methods=kdd", "config argument methods: unknown 'kdd'; did you mean 'kd'?"),
  ("weighting.py:methods=", "config argument methods"),
  ("weighting.py:max_images=-5", "max_images: -5 is too small"),
  ("orders.py:epochs=2", "config argument epochs: 2"),
  ("orders.py:teachr=vgg8", "config argument: unknown 'teachr'"),
  ("orders.py:pair=resnet2O-resnet8", "resnet2O"),
  ("orders.py:image_size=big", "config argument image_size: 'big' is not of type int"),
  ("survey.py:modes=kkd", "unknown 'kkd'; did you mean 'kd'?"),
  ("smoke.py:epochs=1", "configs/studies/smoke.py takes no arguments"),
]

OVERRIDE_CASES = [
  ("seed=x", "--config.seed=x: invalid literal for int"),
  ("seed=1.5", "--config.seed=1.5"),
  ("seed=-1", "config.seed: -1 is too small"),
  ("sead=1", "--config.sead: config has no field 'sead'; did you mean 'seed'?"),
  (
    "stages[0].epoch=5",
    "--config.stages[0].epoch: config.stages[0] has no field 'epoch'; did you mean 'epochs'?",
  ),
  (
    "stages[9].epochs=1",
    "--config.stages[9].epochs: there is no config.stages[9]; config.stages has 4, counted from 0",
  ),
  ("stages[-9].epochs=1", "--config.stages[-9].epochs: there is no config.stages[-9]; config.stages has 4"),
  ("stages.epochs=1", "config.stages is a tuple of 4; name one of its items, as config.stages[0]"),
  ("stages[0]=1", "--config.stages[0]: config.stages[0] cannot be replaced as a whole"),
  ("stages[x].epochs=1", "--config.stages[x].epochs: config.stages"),
  (
    "stages[0.epochs=1",
    "--config.stages[0.epochs: 'stages[0.epochs' is no path of a field; write it as stages[0].epochs",
  ),
  ("stages[0][1]=1", "--config.stages[0][1]"),
  ("seed.x=1", "--config.seed.x: config.seed is 0, which has no 'x'"),
  ("data.sorce=digits", "--config.data.sorce: config.data has no field 'sorce'; did you mean 'source'?"),
  ("=1", "--config."),
  ("stages[0].epochs=x", "--config.stages[0].epochs=x: invalid literal for int"),
  ("stages[0].epochs=0", "config.stages[0].epochs: 0 is too small; it must be greater than 0"),
  ("stages[0].epochs=", "--config.stages[0].epochs="),
  ("stages[0].batch_size=0", "config.stages[0].batch_size: 0 is too small"),
  ("stages[0].batch_size=5000", "config.stages[0].batch_size: 5000, but there are only 1295 training images"),
  ("stages[0].optimizer.learning_rate=fast", "--config.stages[0].optimizer.learning_rate=fast"),
  (
    "stages[0].optimizer.learning_rate=nan",
    "config.stages[0].optimizer.learning_rate: nan is not a finite number",
  ),
  ("stages[0].optimizer.learning_rate=-1", "config.stages[0].optimizer.learning_rate: -1.0 is too small"),
  ("stages[0].optimizer.momentum=2", "config.stages[0].optimizer"),
  ("stages[0].optimizer.nesterov=perhaps", "--config.stages[0].optimizer.nesterov=perhaps"),
  (
    "stages[0].optimizer.name=adamw2",
    "config.stages[0].optimizer.name: unknown 'adamw2'; did you mean 'adamw'?",
  ),
  (
    "stages[0].schedule.name=cosin",
    "config.stages[0].schedule.name: unknown 'cosin'; did you mean 'cosine'?",
  ),
  ("stages[0].schedule.warmup_epochs=9", "config.stages[0].schedule: warmup_epochs: 9"),
  ("stages[0].mix.name=mixdown", "config.stages[0].mix.name: unknown 'mixdown'"),
  ("stages[0].views=flip", "config.stages[0].views[0]: view 'flip': unknown part 'flip'"),
  ("stages[0].label_smoothing=1", "config.stages[0].label_smoothing: 1.0 is not in [0, 1)"),
  ("stages[0].ema_decay=1.5", "config.stages[0].ema_decay: 1.5 is not in [0, 1)"),
  ("stages[0].keep_checkpoint=best", "config.stages[0].keep_checkpoint: unknown 'best'"),
  ("stages[0].trainable=tail", "config.stages[0].trainable: unknown 'tail'"),
  (
    "stages[0].images=unlabeled",
    "config.stages[0].images: 'unlabeled', but config.data.unlabeled names no source",
  ),
  ("stages[0].max_images=5", "config.stages[0].max_images: 5 leaves class"),
  ("stages[0].network=techer", "config.stages[0]: network: unknown 'techer'; did you mean 'teacher'?"),
  ("stages[0].augment.crop_flip.padding=-1", "config.stages[0].augment: crop_flip.padding: -1 pixels"),
  ("stages[1].teachers=()", "config.stages[1].teachers: empty, but 'fitnet' needs a teacher"),
  ("stages[1].teachers=student", "config.stages[1].teachers: 'student' is not trained by then"),
  ("stages[1].teachers=5", "config.stages[1]"),
  ("stages[1].methods[0].name=kdd", "config.stages[1].methods[0].name: unknown 'kdd'; did you mean 'kd'?"),
  ("stages[1].methods[0].student_layer=x", "--config.stages[1].methods[0].student_layer=x"),
  ("stages[1].methods[0].student_layer=9", "fitnet: layer 9 does not exist"),
  (
    "stages[1].methods[3].weight=1",
    "--config.stages[1].methods[3].weight: there is no config.stages[1].methods[3]",
  ),
  ("stages[1].methods=kd", "config.stages[1].methods[0]: 'kd' is not of type dict"),
  ("stages[2].reference.stage=next", "config.stages[2].reference.stage: unknown 'next'"),
  (
    "stages[2].reference.weighting=teacher_tpc",
    "config.stages[2].reference.weighting: unknown 'teacher_tpc'; did you mean 'teacher_tcp'?",
  ),
  ("stages[2].reference.temperature=0", "config.stages[2].reference.temperature: 0.0 is too small"),
  ("stages[2].name=fitnet", "config.stages[2].name: 'fitnet' is the name of an earlier stage too"),
  ("stages[2].name=a/b", "config.stages[2].name: 'a/b' is not a name of letters"),
  ("stages[3].teacher_cache=int8", "config.stages[3].teacher_cache: unknown 'int8'"),
  ("stages=5", "config.stages[0]: 5 is not of type dict; an example is {'name': 'value'}"),
  ("stages=()", "config.stages: there are none"),
  ("networks=5", "--config.networks=5"),
  (
    "networks.student.model=resnet9",
    "config.networks.student.model: unknown 'resnet9'; did you mean 'resnet",
  ),
  ("networks.student.model=custom:nowhere:Net", "custom:nowhere:Net: cannot import nowhere"),
  ("networks.student.model=custom:runs", "'custom:runs' is not of the form custom:package.module:name"),
  ("networks.student.model=custom:tiny:Nothing", "tiny has no class or function Nothing"),
  ("networks.student.num_classes=5", "5, but the data has 10"),
  ("networks.student.width=0", "config.networks.student"),
  ("networks.student.variables=nowhere", "config.networks.student.variables: there is no folder nowhere"),
  (
    "networks.student.variables=files",
    "config.networks.student.variables: files is no checkpoint of variables",
  ),
  ("data.source=digit", "unknown 'digit'; did you mean 'digits'?"),
  ("data.source=cifar100 --config.data.folder=nowhere", "nowhere"),
  ("data.source=npz:", "'npz:' lacks what follows the colon"),
  ("data.source=npz:gone.npz", "gone.npz"),
  ("data.source=npz:text.npz", "text.npz"),
  ("data.source=npz:keys.npz", "keys.npz"),
  ("data.source=npz:floats.npz", "store them as uint8"),
  ("data.source=npz:small.npz", "need at least 8x8"),
  ("data.source=folder:nowhere", "nowhere"),
  ("data.source=folder:files", "files"),
  ("data.source=tfds:no_such_set --config.data.folder=files", "is not prepared in"),
  ("data.validation=1", "validation: 1.0 is not in [0, 1)"),
  ("data.validation=a", "--config.data.validation=a"),
  ("data.validation=0.0001", "validation"),
  ("data.image_size=3", "image_size: 3 is too small"),
  ("data.streamed=True", "streamed"),
  ("data.streamed=maybe", "--config.data.streamed=maybe"),
  ("data.extra_tests=fog", "config.data.extra_tests"),
  ("data.extra_tests=contrast:9", "'contrast:9' has no severity from 1 to 5"),
  ("data.unlabeled=digitz", "data.unlabeled: unknown 'digitz'; did you mean 'digits'?"),
  ("evaluate.batch_size=0", "config.evaluate.batch_size: 0 is too small"),
  ("checkpoint.max_to_keep=0", "config.checkpoint.max_to_keep: 0 is too small"),
  ("data.extra_tests=5", "config.data.extra_tests: unknown 5"),
  ("stages[0].views=(1,2)", "config.stages[0].views[0]: 1 is not of type str"),
  ("stages[0].optimizer=sgd", "--config.stages[0].optimizer=sgd: 'sgd' is not a dict; write it as"),
  ("evaluate={", "--config.evaluate={: '{' is not a dict; write it as"),
  (
    '''"stages[0].schedule={'name':'multistep','milestones':('a',)}"''',
    "config.stages[0].schedule: '<' not supported",
  ),
  (
    '''"stages[0].mix={'name':'mixup','alpha':-1.0}"''',
    "config.stages[0].mix: mixup: alpha must be a positive number",
  ),
  (
    '''"stages[0].mix={'name':'cutmix','probability':2.0}"''',
    "config.stages[0].mix: cutmix: probability must be",
  ),
  ('''"stages=({'netwrk':'a'},)"''', "config.stages[0]: unknown 'netwrk'; did you mean 'network'?"),
  ('''"networks={'a':5}"''', "config.networks.a: 5 is not of type dict; an example is {'name': 'value'}"),
  ("stages[1].methods[0].warmup_epochs=-1", "config.stages[1].methods[0].warmup_epochs: -1.0 is too small"),
  ("checkpoint=3", "--config.checkpoint=3"),
  ("log_every_steps=0", "config.log_every_steps: 0 is too small"),
]

FLAG_CASES = [
  ("main", "--config: missing"),
  ("main --config=configs/smoke.py", "--workdir: missing"),
  ("main --workdir=new", "--config: missing"),
  ("main --config", "config"),
  ("main --workdir", "--workdir: expected one argument"),
  (f"{SMOKE} --config.seed", "Missing value for flag --config.seed"),
  (f"{SMOKE} --noconfig.seed", "noconfig.seed"),
  (f"{SMOKE} --flagfile=nowhere", "unknown flag --flagfile"),
  (f"{SMOKE} stray", "unexpected argument 'stray'"),
  (f"{SMOKE} --cpu_device=2", "unknown flag --cpu_device; did you mean '--cpu_devices'?"),
  (f"{SMOKE} --cpu_devices=two", "--cpu_devices: 'two' is not an integer"),
  (f"{SMOKE} --cpu_devices=0", "--cpu_devices: 0 is too small"),
  (f"{SMOKE} --cpu_devices=3", "64 images do not divide over 3 devices"),
  (f"{SMOKE} --dry_run=perhaps", "--dry_run: takes no value, got 'perhaps'"),
  (f"{SMOKE} --profile=-1", "profile"),
  (f"{SMOKE} --jobs=x", "jobs"),
  (f"{SMOKE} --distributed=two", "--distributed: 'two'"),
  (f"{SMOKE} --store=text.npz", "--store: text.npz cannot be written to"),
  (f"{SMOKE} --compilation_cache=text.npz/cache", "--compilation_cache: text.npz/cache cannot be written to"),
  ("main --config=configs/smoke.py --workdir=text.npz", "--workdir: text.npz cannot be written to"),
  ("main --config=configs/smoke.py --workdir=text.npz/run", "--workdir: text.npz/run cannot be written to"),
  ("main --config=configs/smoke.py --workdir=other", "--workdir: other belongs to another config"),
  ("main --config=configs/smoke.py --workdir=", "--workdir"),
  ("main --config.seed=1 --config=configs/smoke.py --workdir=new", "--config.seed"),
  ("main --config=configs/studies/smoke.py --workdir=new", "config: unknown"),
  ("study --config=configs/smoke.py --workdir=new", "study: unknown"),
  (
    f"{SMOKE} --store=\udce9",
    "'--store=\\udce9' is not text in this process's encoding, utf-8; set PYTHONUTF8=1",
  ),
  ("study", "--config: missing"),
  (f"{STUDY} --jobs=0", "jobs"),
  (f"{STUDY} --parallel_seeds=none", "--parallel_seeds: 'none' is not an integer"),
  (f"{STUDY} --unit=nobody:0", "--unit: 'nobody:0' is no VARIANT:SEED of this study"),
  (f"{STUDY} --unit=99", "--unit: 99, but this study has 4 units, 0 to 3"),
  (f"{STUDY} --unit=free:0 --ray=local", "--ray: 'local' runs all units of a study"),
  (f"{STUDY} --ray=somewhere", "--ray"),
  (f"{STUDY} --config.seeds=()", "study.seeds: there are none"),
  (f"{STUDY} --config.seeds=(0,0)", "study.seeds: (0, 0) names a seed twice"),
  (f"{STUDY} --config.seeds=a", "study.seeds: 'a' is not of type int; an example is 0"),
  (f"{STUDY} --config.control=nobody", "study.control: unknown 'nobody'"),
  (f"{STUDY} --config.network=nobody", "study.network: unknown 'nobody'"),
  (f"{STUDY} --config.variants[2].name=x", "--config.variants[2].name: there is no config.variants[2]"),
  (
    f"{STUDY} --config.variants[0].experiment.stages[0].epochs=0",
    "study.variants.anchored: config.stages[0].epochs",
  ),
  ("study --workdir=new --config=no_variants.py", "study.variants: there are none"),
  ("study --workdir=new --config=no_seeds.py", "study.seeds: there are none"),
]

FOLDER_CASES = [
  ("report", "workdir; see --help"),
  ("report nowhere", "there is no folder nowhere"),
  ("report \udce9", "'\\udce9' is not text in this process's encoding, utf-8; set PYTHONUTF8=1"),
  ("report text.npz", "text.npz"),
  ("report files", "files is neither a run nor a study"),
  ("report unfinished", "the run in unfinished is not finished"),
  ("report damaged", "damaged/result.json is damaged"),
  ("report no_study", "the files of the study in no_study are damaged"),
  ("report unstudied", "no run of the study in unstudied is finished"),
  ("report finished --out=text.npz", "--out: text.npz cannot be written to"),
  ("report finished --embedding=umap", "--embedding: invalid choice: 'umap'"),
  ("report finished --embeding=pca", "unrecognized arguments: --embeding=pca"),
  ("compare", "one, other; see --help"),
  ("compare finished", "other; see --help"),
  ("compare finished finished finished", "unrecognized arguments: finished"),
  ("compare finished nowhere", "B: there is no folder nowhere"),
  ("compare damaged finished", "A: damaged/result.json is damaged"),
  ("compare finished unfinished", "B: the run in unfinished is not finished"),
  (
    "compare finished unstudied",
    "B: unstudied is a study and finished is not; compare two runs, or two studies",
  ),
  ("compare unstudied finished", "A: unstudied is a study and finished is not"),
  ("compare finished files", "B: files is neither a run nor a study"),
  ("evaluate", "path, --data; see --help"),
  ("evaluate finished --data=digits --image_size=x", "--image_size: invalid int value: 'x'"),
  ("evaluate finished --data=digits --splt=test", "unrecognized arguments: --splt=test"),
  (
    "evaluate finished --data=digits --network=studnet",
    "--network: unknown 'studnet'; did you mean 'student'?",
  ),
  ("evaluate nowhere --data=digits", "PATH: there is no nowhere"),
  ("evaluate unfinished --data=digits", "the run in unfinished is not finished"),
  ("evaluate text.npz --data=digits", "PATH: text.npz is a file; import PyTorch's by"),
  ("evaluate files --data=digits", "PATH: files is no checkpoint of variables"),
  ("evaluate finished", "--data; see --help"),
  ("evaluate imported --data=digitz", "unknown 'digitz'; did you mean 'digits'?"),
  ("evaluate imported --data=npz:gone.npz", "gone.npz"),
  ("evaluate finished --data=digits --split=val", "--split: 'val' is none of test, train"),
  ("evaluate imported --data=digits --image_size=-1", "image_size"),
  ("evaluate finished --data=digits --batch_size=0", "--batch_size"),
  ("evaluate finished --data=digits --mean=a --std=1", "--mean"),
  ("evaluate finished --data=digits --mean=0.5", "--std"),
  ("evaluate finished --data=digits --json=files", "--json: files is a folder"),
  ("evaluate finished --data=digits --json=text.npz/a", "--json"),
  ("evaluate imported --data=digits --teacher=nowhere", "nowhere"),
  ("evaluate imported --data=digits --network=resnet8", "--network"),
  ("export", "workdir, --format; see --help"),
  ("export finished", "--format; see --help"),
  ("export finished --format=tflite", "--format: unknown 'tflite'"),
  ("export finished --format=", "--format: unknown ''"),
  ("export finished --format=torch_safetensors,", "--format: unknown ''"),
  ("export nowhere --format=torch_safetensors", "nowhere"),
  ("export files --format=torch_safetensors", "files is no workdir of a run"),
  ("export damaged --format=torch_safetensors", "damaged/result.json is damaged"),
  ("evaluate damaged --data=digits", "damaged/result.json is damaged"),
  ("export unfinished --format=torch_safetensors", "the run in unfinished is not finished"),
  (
    "export finished --format=torch_safetensors --network=studnet",
    "--network: unknown 'studnet'; did you mean 'student'?",
  ),
  ("export finished --format=torch_safetensors --out=text.npz", "--out: text.npz cannot be written to"),
  ("export finished --format=torch_safetensors --overwite", "unrecognized arguments: --overwite"),
  ("import_torch", "FILE: missing"),
  ("import_torch model.pth", "--network: missing"),
  ("import_torch model.pth --network=resnet8:width=0.125", "--out: missing"),
  (
    "import_torch model.pth --network=resnet7 --out=new",
    "--network: unknown 'resnet7'; did you mean 'resnet",
  ),
  ("import_torch model.pth --network=resnet8:wdth=1 --out=new", "--network: option: unknown 'wdth'"),
  ("import_torch model.pth --network=resnet8:width=wide --out=new", "width: 'wide' is not of type float"),
  (
    "import_torch model.pth --network=resnet8:width=0.125 --out=files",
    "--out: files exists and is not an empty folder",
  ),
  ("import_torch model.pth --network=resnet8:width=0.125 --out=text.npz/new", "--out"),
  (
    "import_torch model.pth --network=resnet8:width=0.125 --out=new --image_size=big",
    "--image_size: invalid int value: 'big'",
  ),
  ("import_torch gone.pth --network=resnet8 --out=new", "gone.pth"),
  ("import_torch text.npz --network=resnet8 --out=new", "text.npz"),
  ("import_torch keys.npz --network=resnet8 --out=new", "keys.npz"),
  (
    "import_torch model.pth --network=resnet8:width=0.125 --out=new --stray",
    "unrecognized arguments: --stray",
  ),
  ("store", "store; see --help"),
  ("store nowhere", "nowhere"),
  ("store text.npz", "text.npz"),
  ("store files", "STORE: files holds other files and no stage"),
  ("store finished/store --remove=0123456789abcdef", "0123456789abcdef"),
  ("store finished/store --unused_by=nowhere", "nowhere"),
  ("store finished/store --unused_by=unfinished", "unfinished"),
  ("store finished/store --verfy", "unrecognized arguments: --verfy"),
  ("losses kdd", "there is no method 'kdd'; did you mean 'kd'?"),
  ("losses kd fitnte", "there is no method 'fitnte'; did you mean 'fitnet'?"),
  ("losses --markdown kd", "there is no method '--markdown'"),
  ("losses ''", "there is no method ''"),
]

CASES = [
  *((f"main --workdir=new --config={name}", words) for name, words in FILE_CASES),
  *((f"main --workdir=new --config=configs/{name}", words) for name, words in ARGUMENT_CASES),
  *((f"study --workdir=new --config=configs/studies/{name}", words) for name, words in STUDY_CASES),
  *((f"{SMOKE} --config.{override}", words) for override, words in OVERRIDE_CASES),
  *FLAG_CASES,
  *FOLDER_CASES,
]


def write_data(folder):
  """Files that are no data set, and one of each mistake of an .npz."""
  (folder / "text.npz").write_text("not a zip file")
  np.savez(folder / "keys.npz", images=np.zeros(3))
  image, label = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
  for name, images in (("floats", image / 255), ("small", image[:, :4])):
    arrays = {"train_images": images, "test_images": images, "train_labels": label, "test_labels": label}
    np.savez(folder / f"{name}.npz", **arrays)
  network = MODELS["resnet8"](num_classes=10, width=0.125)
  tensors = golden.state_dict(torch_weights.torch_shapes(network, (32, 32, 1)), 0)
  torch_files.write(folder / "model.pth", {"model": {k: x.astype(np.float32) for k, x in tensors.items()}})


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
  """The folder that all commands run in."""
  folder = tmp_path_factory.mktemp("ground")
  os.symlink(runs.ROOT / "configs", folder / "configs")
  for name, text in FILES.items():
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  (folder / "broken_helper.py").write_text("x = undefined_there\n")
  (folder / "files").mkdir()
  (folder / "files" / "readme.txt").write_text("precious")
  write_data(folder)
  arguments = [str(folder / "model.pth"), "--network=resnet8:width=0.125", f"--out={folder / 'imported'}"]
  assert import_torch.main(arguments) == 0
  fake_runs.run(folder / "finished", seed=3)
  for name, broken in (("unfinished", None), ("damaged", "{")):
    shutil.copytree(folder / "finished", folder / name)
    (folder / name / "result.json").unlink()
    if broken:
      (folder / name / "result.json").write_text(broken)
  (folder / "other").mkdir()
  (folder / "other" / "config.json").write_text('{"config": {"seed": 1}}')
  for name in ("unstudied", "no_study"):
    (folder / name).mkdir()
  (folder / "no_study" / "study.json").write_text("{}")
  (folder / "unstudied" / "study.json").write_text(
    '{"store": "store", "study": {"variants": {"a": {}}, "seeds": [0]}}'
  )
  return folder


def files_in(folder):
  return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("line, words", CASES, ids=[line.replace("--workdir=new ", "") for line, _ in CASES])
def test_a_wrong_input_is_one_line_and_nothing_is_written(line, words, ground, monkeypatch, capfd):
  monkeypatch.chdir(ground)
  monkeypatch.syspath_prepend(str(ground))
  if "compilation_cache" not in line:
    monkeypatch.setattr(compilation_cache, "enable", lambda folder=None: None)
  before = files_in(ground)
  program, *arguments = shlex.split(line)
  status = PROGRAMS[program](arguments)
  out, err = capfd.readouterr()
  assert status == 2, out + err
  assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
  assert words in err, err
  assert len(err) <= 320, err
  assert not out, out
  assert files_in(ground) == before
  assert jax.config.jax_compilation_cache_dir
