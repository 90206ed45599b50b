"""SMSKD, or any other sequence of methods, by the published protocol.

  python -m smskd_jax.main --workdir=runs/at_kd \\
    --config=configs/smskd.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=at+kd

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657. Published accuracies on CIFAR-100 in percent, 240 epochs, mean of 3 seeds, the
authors' numbers:

                            teacher  student     KD     AT  AT then KD  CRD  CRD then KD
  resnet56 -> resnet20        73.29    69.15  70.35  70.36       72.16  71.89      72.42
  wrn_40_2 -> wrn_16_2        75.61    71.98  74.18  74.38       75.97  75.49      76.02

No run of 240 epochs has been made with this config. Cost: see --dry_run. configs/studies/table1.py and its neighbours
reproduce the paper's tables. smskd_jax/recipes/smskd.py has the protocols (`protocol=paper`, `equal`, `full`), the
recipe, and the choices that the paper leaves open.

  stages=at+kd          names in smskd_jax/recipes/literature.csv: methods with their published weights, for the pair of
                        networks if the table has one; kd_ls, dkd_ls and ctkd are kd and dkd inside a plug-in
  mode=joint            all methods jointly for all epochs: the paper's baseline DLA
  stages=kd             a single method: the recipe of "Contrastive Representation Distillation"
  transition=120        first epoch of the second stage
  epochs=24             the same schedule at a tenth of the budget
  lambda_r, weighting   of the reference term; also temperature and tcp_temperature
  dataset=tiny_imagenet the paper's second data set: 64x64 pixels, only flips; its pairs are resnet56, resnet20 and
                        vgg13, vgg8

Not taken over from the methods' authors: their batch sizes, learning rates and views, which the column `source` of
literature.csv names. stages=simkd alone ends with the teacher's classifier; in sequences of stages the student keeps
its own. With dml the student has a peer of the same architecture. optimizer=dot is DOT.

teacher_variables=FOLDER reads the teacher from a folder of `python -m smskd_jax.import_torch` or of another run.

Arguments: `ARGUMENTS` of smskd_jax/recipes/smskd.py, and stages (joined by +), mode, seed.
"""

from smskd_jax.config import experiment, network, parse_arg
from smskd_jax.recipes import smskd


def get_config(arg=None):
  """Returns the experiment for a string of arguments."""
  args = parse_arg(arg, stages="at+kd", mode="stages", seed=0, **smskd.ARGUMENTS)
  methods = smskd.parse_methods("stages", args.stages)
  recipe = smskd.training_recipe(args, args.student, args.optimizer)
  return experiment(
    seed=args.seed,
    data=smskd.data_fields(args),
    networks={
      "teacher": network(args.teacher, variables=args.teacher_variables),
      "student": smskd.student_network(args, methods),
    },
    stages=(
      *smskd.teacher_stages(args),
      *smskd.student_stages(args, methods, recipe, args.mode),
    ),
    evaluate={"every_epochs": args.evaluate_every_epochs},
  )
