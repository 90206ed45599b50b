"""The losses of benchmarks/losses.py once more, in plain PyTorch.

Our own restatement of what the public PyTorch code of each method computes, operation by operation as there: eager,
with autograd, on maps [b, c, h, w]. What learns are our parameters, taken over; no running averages of batch norm are
kept. `nst` and `fsp` store all products of pairs of channels, as public code does; `nst_by_matrices` and
`fsp_by_matrices` are what it could do.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
import torch.nn.functional as F

from smskd_jax.types import Outputs


class Given(NamedTuple):
  """Inputs of a loss, in tensors."""

  student: Outputs
  teacher: Outputs
  label: Tensor  # [b]
  index: Tensor  # [b]
  params: Any  # kernels [out, in, h, w] and [out, in]
  state: Any  # what our side remembers; for crd, which changes it in place
  rows: Tensor | None  # of the banks, [b, 1 + K], for crd
  margins: list[Tensor]  # [c, 1, 1], of the teacher's stages, for ofd


def linear(x, params):
  return F.linear(x, params["kernel"], params["bias"])


def stages(g):
  return list(zip(g.student.features[1:], g.teacher.features[1:], strict=True))


def preactivations(g):
  return list(zip(g.student.preactivations[1:], g.teacher.preactivations[1:], strict=True))


def attention(feature):
  return F.normalize(feature.pow(2).mean(1).flatten(1))


def similarity(rows):
  return F.normalize(rows @ rows.t())


def concatenated(outputs):
  return torch.cat([x.flatten(1) for x in outputs.features[1:]], 1)


def conv_norm(x, params, conv="conv", norm="norm"):
  x = F.conv2d(x, params[conv]["kernel"], padding=params[conv]["kernel"].shape[-1] // 2)
  return F.batch_norm(x, None, None, params[norm]["scale"], params[norm]["bias"], training=True)


def softened_kl(student, teacher, temperature=4):
  log_q, p = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
  return temperature**2 * F.kl_div(log_q, p, reduction="sum") / len(student)


def dkd(g, beta=8, temperature=4):
  student, teacher = g.student.logits, g.teacher.logits
  is_label = F.one_hot(g.label, student.shape[1]).bool()

  def label_or_other(logits):
    p = F.softmax(logits / temperature, 1)
    return torch.cat([(p * is_label).sum(1, keepdim=True), (p * ~is_label).sum(1, keepdim=True)], 1)

  on_label = F.kl_div(label_or_other(student).log(), label_or_other(teacher), reduction="sum")
  others = (logits - 1000 * temperature * is_label for logits in (student, teacher))
  return temperature**2 * on_label / len(student) + beta * softened_kl(*others, temperature)


def dist(g, temperature=4):
  def one_minus_pearson(x, y):
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return 1 - ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)).mean()

  p, q = (F.softmax(x.logits / temperature, 1) for x in (g.teacher, g.student))
  return temperature**2 * (one_minus_pearson(q, p) + one_minus_pearson(q.t(), p.t()))


def mlkd(g):
  (b, k), total = g.student.logits.shape, 0.0
  for temperature in (2, 3, 4, 5, 6):
    p, q = (F.softmax(x.logits / temperature, 1) for x in (g.teacher, g.student))
    batch_term = ((p @ p.t() - q @ q.t()) ** 2).sum() / b
    class_term = ((p.t() @ p - q.t() @ q) ** 2).sum() / k
    total = total + softened_kl(g.student.logits, g.teacher.logits, temperature) + batch_term + class_term
  return total


def nst(g, products=lambda x, y: (x.unsqueeze(1) * y.unsqueeze(2)).sum(-1)):
  def channels(x):
    return F.normalize(x.flatten(2), dim=2)

  def kernel(x, y):
    return products(x, y).pow(2).mean()

  def layer_loss(s, t):
    return kernel(t, t).detach() + kernel(s, s) - 2 * kernel(s, t)

  return sum(layer_loss(channels(s), channels(t)) for s, t in stages(g))


def fsp(g, mean_products=lambda x, y: (x.unsqueeze(1) * y.unsqueeze(2)).mean(-1)):
  def flow(bottom, top):
    bottom = F.adaptive_avg_pool2d(bottom, top.shape[2:]) if bottom.shape[2:] != top.shape[2:] else bottom
    return mean_products(bottom.flatten(2), top.flatten(2))

  student, teacher = (map(flow, x.features[:-1], x.features[1:]) for x in (g.student, g.teacher))
  return sum((s - t).pow(2).mean() for s, t in zip(student, teacher, strict=True))


def ab(g):
  total = 0
  for s, t in preactivations(g):
    silent = (s + 1) ** 2 * ((s > -1) & (t <= 0)).float()
    active = (s - 1) ** 2 * ((s <= 1) & (t > 0)).float()
    total = total / 2 + (silent + active).sum() / len(s)
  return 3e-3 * total


def coder(x, params):
  for i in range(3):
    if f"norm_{i}" in params:
      x = conv_norm(x, params, f"conv_{i}", f"norm_{i}")
    else:
      x = F.conv2d(x, params[f"conv_{i}"]["kernel"], params[f"conv_{i}"]["bias"], padding=1)
    x = F.leaky_relu(x, 0.1)
  return x


def ft(g):
  (student, teacher), paraphraser = stages(g)[-1], g.params["paraphraser"]
  factor = coder(teacher, paraphraser["encoder"])
  reconstruction = coder(factor, paraphraser["decoder"])
  student_attention = attention(coder(student, g.params["translator"]))
  factor_loss = (student_attention - attention(factor.detach())).abs().mean()
  return factor_loss + 0.001 * F.mse_loss(reconstruction, teacher)


def vid(g, eps=1e-5):
  total = 0
  for i, (x, target) in enumerate(stages(g)):
    params = g.params[f"tap{i}"]
    for j in range(3):
      x = F.conv2d(F.relu(x) if j else x, params[f"conv{j}"]["kernel"])
    variance = (F.softplus(params["log_scale"]) + eps)[None, :, None, None]
    total = total + 0.5 * ((x - target) ** 2 / variance + variance.log()).mean()
  return total


def ofd(g):
  total = 0
  for i, ((s, t), m) in enumerate(zip(preactivations(g), g.margins, strict=True)):
    s = conv_norm(s, g.params[f"tap{i}"])
    below = (s - m) ** 2 * ((s > m) & (t <= m)).float()
    between = (s - t) ** 2 * ((s > t) & (t > m) & (t <= 0)).float()
    above = (s - t) ** 2 * (t > 0).float()
    total = total / 2 + (below + between + above).mean(0).sum()
  return total


def hierarchical(student, teacher):
  terms = [F.mse_loss(student, teacher)]
  for level in (level for level in (4, 2, 1) if level < student.shape[2]):
    terms.append(F.mse_loss(*(F.adaptive_avg_pool2d(x, level) for x in (student, teacher))))
  return sum(0.5**i * x for i, x in enumerate(terms)) / sum(0.5**i for i in range(len(terms)))


def reviewkd(g):
  students = [*g.student.features[1:], g.student.embedding[:, :, None, None]]
  targets = [*g.teacher.preactivations[1:], g.teacher.embedding[:, :, None, None]]
  fused, total = None, 0
  for i in reversed(range(len(students))):
    params = g.params[f"tap{i}"]
    x = conv_norm(students[i], params["conv1"])
    if fused is not None:
      fused = F.interpolate(fused, x.shape[2:], mode="nearest")
      kernel = params["attention_kernel"][:, :, None, None]
      a = torch.sigmoid(F.conv2d(torch.cat([x, fused], 1), kernel, params["attention_bias"]))
      x = x * a[:, :1] + fused * a[:, 1:]
    fused = x
    total = total + hierarchical(conv_norm(x, params["conv2"]), targets[i])
  return total


def kdsvd(g):
  def right_vectors(feature, n):
    vectors = torch.linalg.svd(feature.flatten(2).transpose(1, 2), full_matrices=False)[2]
    return F.normalize(vectors[:, :n].transpose(1, 2), dim=1)

  def directions(s, t):
    target, vectors = right_vectors(t, 1), right_vectors(s, 4)
    target = torch.where(target.sum(1, keepdim=True) < 0, -target, target)
    cosine = vectors.transpose(1, 2) @ target
    largest = cosine.abs() == cosine.abs().amax(1, keepdim=True)
    return vectors @ (cosine.sign() * largest), target

  def relation(x, y):
    return torch.exp(-(x.unsqueeze(2) - y.unsqueeze(1)).pow(2) / 8)

  directions = [directions(s, t) for s, t in stages(g)]
  relations = [
    list(map(relation, after, before)) for before, after in zip(directions[:-1], directions[1:], strict=True)
  ]
  return sum((s - t).pow(2).sum() for s, t in relations) / len(g.label)


def cc(g):
  student, teacher = (linear(getattr(g, x).embedding, g.params[x]) for x in ("student", "teacher"))
  error = (student - teacher).abs()
  return (error[:-1] * error[1:]).sum(1).mean()


def rkd(g):
  def distances(x):
    square = x.pow(2).sum(1)
    d = (square[:, None] + square[None, :] - 2 * x @ x.t()).clamp(min=1e-12).sqrt().clone()
    d[range(len(x)), range(len(x))] = 0
    return d / d[d > 0].mean()

  def angles(x):
    offset = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
    return torch.bmm(offset, offset.transpose(1, 2)).flatten()

  def mean_huber(f):
    return F.smooth_l1_loss(f(g.student.embedding), f(g.teacher.embedding))

  return 25 * mean_huber(distances) + 50 * mean_huber(angles)


def pkt(g, eps=1e-7):
  def probabilities(x):
    x = x / (x.pow(2).sum(1, keepdim=True).sqrt() + eps)
    kernel = (x @ x.t() + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)

  student, teacher = probabilities(g.student.embedding), probabilities(g.teacher.embedding)
  return (teacher * torch.log((teacher + eps) / (student + eps))).mean()


def crd(g, temperature=0.07, momentum=0.5, eps=1e-7):
  banks, (b, columns) = (g.state.memory_student, g.state.memory_teacher), g.rows.shape

  def unit(x):
    return x / x.pow(2).sum(1, keepdim=True).sqrt()

  student, teacher = (unit(linear(getattr(g, x).embedding, g.params[x])) for x in ("student", "teacher"))
  noise, total = (columns - 1) / len(banks[0]), 0
  for x, bank, log_z in zip((student, teacher), banks[::-1], g.state.log_normalizers, strict=True):
    rows = torch.index_select(bank, 0, g.rows.flatten()).view(b, columns, -1)
    p = torch.exp(torch.bmm(rows, x[:, :, None])[:, :, 0] / temperature) / log_z.exp()
    positive, negatives = p[:, 0], p[:, 1:]
    own = torch.log(positive / (positive + noise + eps)).sum()
    total = total - (own + torch.log(noise / (negatives + noise + eps)).sum()) / b
  with torch.no_grad():
    for x, bank in zip((student, teacher), banks, strict=True):
      bank.index_copy_(0, g.index, unit(momentum * bank[g.index] + (1 - momentum) * x))
  return total


def sfd(g):
  def largest(x):
    return F.adaptive_max_pool2d(x, 1).flatten(1)

  directions = zip(g.student.preactivations, g.teacher.preactivations, strict=True)
  return sum(F.pairwise_distance(largest(s), largest(t), eps=1e-6).max() for s, t in directions)


_OTHERS = (ab, cc, crd, dist, dkd, fsp, ft, kdsvd, mlkd, nst, ofd, pkt, reviewkd, rkd, sfd, vid)
LOSSES = {
  "at": lambda g: sum((attention(s) - attention(t)).pow(2).mean() for s, t in stages(g)),
  "fitnet": lambda g: F.mse_loss(F.relu(conv_norm(stages(g)[1][0], g.params)), stages(g)[1][1]),
  "fsp_by_matrices": lambda g: fsp(g, lambda x, y: x @ y.transpose(1, 2) / x.shape[2]),
  "kd": lambda g: softened_kl(g.student.logits, g.teacher.logits),
  "nst_by_matrices": lambda g: nst(g, lambda x, y: x @ y.transpose(1, 2)),
  "pkd": lambda g: 10 * F.mse_loss(concatenated(g.student), concatenated(g.teacher)),
  "sp": lambda g: F.mse_loss(*(similarity(x.features[-1].flatten(1)) for x in (g.student, g.teacher))),
  **{loss.__name__: loss for loss in _OTHERS},
}
