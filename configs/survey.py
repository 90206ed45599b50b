"""One mode of the KD survey, "The State of Knowledge Distillation for Classification".

  python -m smskd_jax.main --workdir=runs/kd --config=configs/survey.py:mode=kd
  python -m smskd_jax.main --workdir=runs/takd --config=configs/survey.py:mode=takd,assistants=survey_resnet20

Ruffy, Chahal, 2019, https://arxiv.org/abs/1912.10850, and its public code. smskd_jax/recipes/survey.py has the recipe,
the modes and their differences from that code. The survey's accuracies in percent are of CIFAR-10, resnet26 (93.41) to
resnet8, 200 epochs (Table 3) and 350 (Table 4), one seed, the best epoch by the test set, which the report shows as
`oracle`. docs/results.md has all modes at a smaller budget. Cost: see --dry_run.

KD stands for (1 - lambda) CE + lambda T^2 KL(teacher || student).

  mode       training of the student                                              survey, 200 / 350 epochs
  nokd       labels only                                                          89.42 / 89.34
  kd         KD                                                                   90.33 / 90.77
  allkd      KD from each of `teachers`, best by validation                       90.40 (Table 2)
  kdparam    KD for each of `temperatures` and `weights`, best by validation      -
  triplet    (1 - lambda) (1 - cos(student, teacher)) + lambda T^2 KL             -
  mkd        KD from all `teachers` at once                                       90.34
  uda        KD on a plain and on an AutoAugment view                             90.52 / 91.22
  uda_nokd   labels on both views, no teacher                                     - / 90.34
  takd       KD from `assistants`, each trained by KD from the previous one       90.57 / 90.97
  ab         activation boundaries for 10 epochs, then KD                         -
  oh         labels and overhaul (OFD) / 1000                                     87.09
  rkd        KD and RKD, weights 25 and 50                                        90.22
  pkd        KD and 10 times the squared error of all maps                        -
  sfd        labels and the maxima of all maps                                    87.47
  stl        the embedding, on the images of `unlabeled`; then the classifier     90.8, likely a misprint
  blind      KD without labels, on noise                                          -

Arguments: mode, dataset, folder, teacher, teachers (joined by +, for allkd and mkd: in addition to `teacher`),
assistants (joined by +, in order), student, epochs, teacher_epochs (0: as epochs), batch_size, learning_rate, padding,
seed, temperature, weight (lambda), temperatures, weights (joined by +, for kdparam), weighting (mkd: equal, accuracy,
tcp), consistency (uda: weight of the UDA paper's own term), attention (rkd), reduction (sfd: max or mean),
teacher_statistics (oh: batch or running), ab_epochs, unlabeled, unlabeled_batch_size (images in addition to each batch,
for the distillation terms), pretrain_epochs (stl), max_images (of the student; 0: all), image_size, validation
(fraction of the training images; allkd and kdparam: 0.1 by default; selects only takd's assistants otherwise),
extra_tests (joined by +), teacher_variables (folders joined by +, for `teacher` and each of `teachers`, which are then
not trained), evaluate_every_epochs.
"""

from smskd_jax.recipes import survey


def get_config(arg=None):
  """Returns the experiment for a string of arguments."""
  return survey.mode_experiment(survey.parse_arguments(arg, mode="kd"))
