"""The survey's protocols: every mode of "The State of Knowledge Distillation for Classification", on one recipe.

  python -m smskd_jax.main --workdir=runs/kd --config=configs/survey.py:mode=kd
  python -m smskd_jax.main --workdir=runs/takd --config=configs/survey.py:mode=takd,assistants=survey_resnet20

Ruffy, Chahal, 2019, https://arxiv.org/abs/1912.10850, and its public code. The recipe, for every network: SGD with
Nesterov momentum 0.9 and decay 5e-4, batch 128, rate 0.1 times 0.1 after a third and two thirds of the epochs, crops of
the image padded by 4, flips; T = 5 and lambda = 0.5 throughout. Its numbers are for CIFAR-10, resnet26 (93.41 %) to
resnet8, 200 epochs (Table 3) and 350 (Table 4), one seed, the best epoch by the test set, which our report shows as
`oracle`. They are quoted below as the survey's; benchmarks/results/survey.md has ours, at a smaller budget.

KD stands for (1 - lambda) CE + lambda T^2 KL(teacher || student).

  mode       what the student learns                                              survey, 200 / 350 epochs
  nokd       labels alone                                                         89.42 / 89.34
  kd         KD                                                                   90.33 / 90.77
  allkd      KD from each of `teachers` in turn, best by validation               90.40 (Table 2)
  kdparam    KD for each of `temperatures` and `weights`, best by validation      -
  triplet    (1 - lambda) (1 - cos(student, teacher)) + lambda T^2 KL             -
  mkd        KD from all `teachers` at once                                       90.34
  uda        KD on a plain and on an AutoAugment view                             90.52 / 91.22
  uda_nokd   labels on both views, no teacher                                     - / 90.34
  takd       KD from `assistants`, which learned by KD from the one before        90.57 / 90.97
  ab         activation boundaries for 10 epochs, then KD                         -
  oh         labels and overhaul (OFD) / 1000                                     87.09
  rkd        KD and RKD of 25 and 50                                              90.22
  pkd        KD and 10 times the squared error of all maps                        -
  sfd        labels and the maxima of all maps                                    87.47
  stl        the embedding, on the images of `unlabeled`; then the classifier     90.8, likely a misprint
  blind      KD without labels, on noise                                          -

smskd_jax/recipes/survey_modes.py says of each mode what is the survey's and what differs. Of its bugs none is repeated:
the temperature of `kdparam` is swept, `mkd` has the teachers that it names, `rkd` has its attention term where asked
for (attention=True). configs/studies/survey.py compares all modes, with several seeds.

Arguments: mode, dataset, folder, teacher, teachers (joined by +, for allkd and mkd: besides `teacher`), assistants
(joined by +, in order), student, epochs, teacher_epochs (0: as epochs), batch_size, learning_rate, padding, seed,
temperature, weight (lambda), temperatures, weights (joined by +, for kdparam), weighting (mkd: equal, accuracy, tcp),
consistency (uda: weight of the UDA paper's own term), attention, reduction (sfd: max or mean), teacher_statistics (oh:
batch or running), ab_epochs, unlabeled, unlabeled_batch_size (images beside each batch, for the distillation terms),
pretrain_epochs (stl), max_images (of the students; 0: all), image_size, validation (allkd and kdparam: 0.1 unless
given; elsewhere it selects nothing but takd's assistants), extra_tests (joined by +), teacher_variables (folders joined
by +, for `teacher` and each of `teachers`: those are taken from there and not trained), evaluate_every_epochs.
"""

from smskd_jax.errors import unknown_name_error
from smskd_jax.recipes import survey
from smskd_jax.recipes.survey_modes import MODES, mode_experiment


def get_config(arg=None):
  """The config for a string of arguments."""
  args = survey.parse_arguments(arg, mode="kd")
  if args.mode not in MODES:
    raise unknown_name_error("config argument mode", args.mode, MODES)
  return mode_experiment(args)
