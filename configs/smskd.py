"""SMSKD, or any sequence of methods, by the published protocol, from one line.

  python -m smskd_jax.main --workdir=runs/at_kd \\
    --config=configs/smskd.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=at+kd

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657. Its numbers on CIFAR-100, 240 epochs, mean of 3 seeds, are the authors' and not ours:

                            teacher  student     KD     AT  AT then KD  CRD  CRD then KD
  resnet56 -> resnet20        73.29    69.15  70.35  70.36       72.16  71.89      72.42
  wrn_40_2 -> wrn_16_2        75.61    71.98  74.18  74.38       75.97  75.49      76.02

`configs/studies/table1.py` and its neighbours are the paper's tables. smskd_jax/recipes/smskd.py has the protocols
(`protocol=paper`, `equal`, `full`) and the recipe, and says what the paper leaves open.

  stages=at+kd          names of smskd_jax/recipes/literature.csv: methods with the weights that were published, for
                        the pair of networks where they differ; kd_ls, dkd_ls, ctkd are kd and dkd inside a plug-in
  mode=joint            all methods at once for all epochs: the paper's baseline DLA
  stages=kd             a single method: the recipe of "Contrastive Representation Distillation"
  transition=120        the epoch at which the second stage begins
  epochs=24             a run of the same shape at a tenth of the budget
  lambda_r, weighting   of the reference term; temperature and tcp_temperature too
  dataset=tiny_imagenet the paper's other data set: 64x64, flips alone; its pairs are resnet56, resnet20 and vgg13, vgg8

What is not taken over from the methods' authors: batch sizes, rates and views of their own, which the column `source`
of literature.csv names. stages=simkd alone ends in the teacher's classifier; among other stages the student keeps its
own. With dml the student has a peer of its own kind. optimizer=dot is DOT.

teacher_variables=FOLDER takes the teacher from there, as `python -m smskd_jax.import_torch` or another run has left it,
and trains none.

Arguments: `ARGUMENTS` of smskd_jax/recipes/smskd.py, and stages (joined by +), mode, seed.
"""

from smskd_jax.config import experiment, network, parse_arg
from smskd_jax.recipes import smskd


def get_config(arg=None):
  """The config for a string of arguments."""
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
