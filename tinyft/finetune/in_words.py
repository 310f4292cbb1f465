"""A plan in words: `explain` has each phase with its numbers, the reasons and the files, `story` is
for somebody who sees a run for the first time. `print(plan)` shows the numbers as a table.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyft.display import counted, first_few, paragraph
from tinyft.finetune.plan import REMEMBERS, GroupState, Plan
from tinyft.finetune.schedule import Phase
from tinyft.finetune.training import AS_GIVEN, MEANS

WHY_FROZEN = (
    "Why: the head begins with random weights, so its first gradients say nothing about pictures; "
    "passed on at full rate they would undo what the pretrained layers know (it is the first step "
    "of the gradual unfreezing of Howard and Ruder, 2018, all of which learner.plan_of can make)."
)
WHY_UNFROZEN = (
    "Why: the head now sends gradients that mean something, and the pretrained layers can bend "
    "towards these pictures."
)
WHY_FROZEN_RANDOM = (
    "Why: it was asked for; the body begins with random weights too, and they know nothing that "
    "freezing would keep."
)
WHY_UNFROZEN_RANDOM = (
    "Why: the body's weights are random, so everything has to be learnt from these pictures."
)
WHY_ALL_AT_ONCE = "Why: no phase of the head alone was asked for, so everything trains at once."
WHY_RATES = (
    "Early layers detect edges and textures that any picture has and need little change, late ones "
    "are specific to the old task: hence smaller rates further down (Yosinski et al., 2014)."
)
RATES_RANDOM = "That suits pretrained layers; random ones have as much to learn as the head."
WHY_FROZEN_AGAIN = "Why: a head can follow the body's features without changing them."
WHY_FROZEN_IN_PART = "Why: what the first layers detect serves any picture, so it can stay."
WHY_CYCLE = (
    "The rise lets the optimizer settle before large steps, a fall lets the weights settle at the "
    "end (Smith, 2018)."
)

BN_FROZEN = {
    "fastai": (
        "Their batch norms are not frozen: they normalise with each batch's own statistics, their "
        "running statistics follow, and their scales and shifts train ({count} parameters), as in "
        'fastai. Why: the new pictures have statistics of their own. bn="torch" or "frozen" would '
        "hold them."
    ),
    "torch": (
        "Their batch norms normalise with each batch's own statistics and their running statistics "
        "move although no weight learns, as in PyTorch with requires_grad=False and model.train(): "
        'the network predicts differently afterwards. bn="frozen" would hold them.'
    ),
    "frozen": (
        "Their batch norms are frozen too: running statistics normalise and stay, as with Keras's "
        "trainable=False, so {unchanged}."
    ),
}
FILES = {
    "phases and rates": "schedule.py",
    "freezing, batch norms and the comparison": "groups.py",
    "the update": "optim.py",
    "the loop": "loop.py",
}
UNCHANGED = "not one bit of these layers changes"
UNCHANGED_BUT_DECAY = "only weight decay changes these layers (stale_gradients=True)"


@dataclass(frozen=True)
class PhaseInWords:
    """A phase as a paragraph: title, sentences, and which file does which part."""

    title: str
    text: str
    where: str

    def __str__(self) -> str:
        where = paragraph(f"Where: {self.where}", first="  ", rest="  ")
        return paragraph(f"{self.title}: {self.text}") + "\n" + where


def explain(plan: Plan) -> str:
    """The whole plan: what it is about, its phases, the decay."""
    subject = "\n".join(map(paragraph, plan.subject.lines()))
    return "\n\n".join([subject, *map(str, phases(plan)), paragraph(decay(plan))])


def phases(plan: Plan) -> list[PhaseInWords]:
    """Each phase of the plan: its numbers, and the reasons."""
    paragraphs, first = [], plan.first_step
    for number, phase in enumerate(plan.phases):
        paragraphs.append(_phase(plan, number, first))
        first += phase.steps
    return paragraphs


def _phase(plan: Plan, number: int, first: int) -> PhaseInWords:
    phase, states = plan.phases[number], plan.states[number]
    frozen = [state for state in states if state.frozen]
    memory = "forgets what it remembered" if plan.reset_optimizer else REMEMBERS
    sentences = [
        f"{counted(phase.epochs, 'epoch')} of {counted(phase.steps_per_epoch, 'step')}, "
        f"steps {first} to {first + phase.steps - 1}.",
        _frozen(plan, frozen) if frozen else _norms(plan.bn),
        _what_trains(states),
        *_why(plan, number, frozen),
        *_rates(plan, number, first),
        WHY_CYCLE,
        _momentum(phase),
        *_cache(plan, number),
        f"Before the first step the optimizer {memory}; after the last the bits "
        "of every tensor that was to stay are compared with those before.",
    ]
    title = f"Phase {number + 1} of {len(plan.phases)}, {phase.name}"
    files = FILES | ({"kept features": "feature_cache.py"} if plan.cached_bytes[number] else {})
    where = ", ".join(f"{what}: tinyft/finetune/{file}" for what, file in files.items())
    return PhaseInWords(title, " ".join(sentences), where)


def _frozen(plan: Plan, frozen: list[GroupState]) -> str:
    names, count = " and ".join(s.name for s in frozen), sum(s.total for s in frozen)
    norms = BN_FROZEN[plan.bn].format(
        count=f"{sum(s.trainable for s in frozen):,}",
        unchanged=UNCHANGED_BUT_DECAY if plan.stale_gradients else UNCHANGED,
    )
    return f"Frozen: {names}, {count:,} parameters. {norms}"


def _what_trains(states: list[GroupState]) -> str:
    training = "; ".join(f"{s.name}, {s.trainable:,}" for s in states if not s.frozen)
    whole, all_of_them = sum(s.trainable for s in states), sum(s.total for s in states)
    reached = f"Gradients reach {whole:,} of {all_of_them:,} parameters."
    return f"Training: {training or 'no group'}. {reached}"


def _norms(bn: str) -> str:
    if bn == "frozen":
        return "The body's batch norms keep the running statistics that they have; scales train."
    return "All batch norms normalise with the batch, their statistics follow, their scales train."


def _rates(plan: Plan, number: int, first: int) -> list[str]:
    """The learning rates of the groups that move, in a phase that begins with step `first`."""
    phase, states = plan.phases[number], plan.states[number]
    moving = [g for g, state in enumerate(states) if state.trainable or plan.stale_gradients]
    texts = [f"{states[g].name} from {_rate(phase.lr[0, g])} to {_rate(phase.lr[:, g].max())} to "
             f"{_rate(phase.lr[-1, g])}" for g in moving]  # fmt: skip
    if not moving:
        return []
    peak = int(phase.lr[:, moving[-1]].argmax())
    rises = peak == phase.steps - 1
    way = "rise to the end" if rises else f"rise until step {first + peak}, then fall"
    paragraphs = [f"Learning rates {way}: {'; '.join(texts)}."]
    first_rate, last_rate = phase.lr[0, moving[0]], phase.lr[0, moving[-1]]
    if 0 < first_rate < last_rate:
        times = last_rate / first_rate
        why = RATES_RANDOM if plan.subject.random_body else WHY_RATES
        paragraphs.append(f"The last group learns {times:.0f} times as fast as the first. {why}")
    return paragraphs


def _momentum(phase: Phase) -> str:
    m = phase.momentum
    if not m.any():
        return "The optimizer has no momentum: each step follows its own batch's gradient alone."
    return f"Momentum mirrors the rates: from {m[0]:.3f} to {m.min():.3f} to {m[-1]:.3f}."


def _cache(plan: Plan, number: int) -> list[str]:
    if not plan.cached_bytes[number]:
        return []
    others = plan.phases[number].epochs - 1
    saved = f", and {counted(others, 'epoch')} cost the head alone" if others else ""
    return [
        f"The body cannot change and pictures are not augmented, so its features are kept "
        f"({plan.cached_bytes[number] / 1e6:.0f} MB): each picture passes through it once{saved}."
    ]


def _why(plan: Plan, number: int, frozen: list[GroupState]) -> list[str]:
    """The reason for what is frozen; freezing everything has none."""
    if not frozen and number == 0:
        return [WHY_ALL_AT_ONCE]
    if not frozen:
        return [WHY_UNFROZEN_RANDOM if plan.subject.random_body else WHY_UNFROZEN]
    if plan.subject.random_body:
        return [WHY_FROZEN_RANDOM]
    training = [state for state in plan.states[number] if not state.frozen]
    if training and all(state.in_head for state in training):
        return [WHY_FROZEN if number == 0 and plan.subject.random_head else WHY_FROZEN_AGAIN]
    return [WHY_FROZEN_IN_PART] if training else []


def decay(plan: Plan) -> str:
    """Tell what weight decay does in every step."""
    text = (
        f"In every step each weight that trains also shrinks by {plan.weight_decay:g} times its "
        "learning rate; batch norms and biases do not (tinyft/finetune/groups.py)."
    )
    lost = {
        state.name: sum(_without_decay(plan, number, g) for number in range(len(plan.phases)))
        for g, state in enumerate(plan.states[0])
    }
    if plan.weight_decay and any(lost.values()):
        listed = ", ".join(f"{name} in {n}" for name, n in lost.items() if n)
        text += (
            f" Where the rate is small, 1 minus that product is 1 in {plan.subject.dtype} and "
            f"nothing shrinks: {listed} of {plan.steps} steps."
        )
    if plan.stale_gradients:
        text += " Frozen weights that once trained decay on, as in fastai (stale_gradients=True)."
    return text


def _without_decay(plan: Plan, number: int, g: int) -> int:
    """In how many steps of a phase a group trains whose decay is rounded away."""
    if plan.states[number][g].frozen:
        return 0
    kept = (1 - plan.phases[number].lr[:, g] * plan.weight_decay).astype(plan.subject.dtype)
    return int((kept == 1).sum())


def _rate(value: float) -> str:
    return f"{value:.2g}"


# ----------------------------------------------------------------------------------------- a story


HEAD_TEXTS = {
    "fastai": "both pools, batch norm, dropout, 512 numbers, ReLU, batch norm, dropout, {} classes",
    "linear": "average pool, {} classes",
    None: "a module of the caller's, {} classes",
}
BODY_FROZEN = (
    "The pretrained layers are frozen: the weights of their convolutions get no gradient, so what "
    "they know is safe from the head's first, random errors."
)
ALL_TRAIN = (
    "The early layers hardly move, as edges and textures serve any photo; later ones move more."
)
RANDOM_FROZEN = "The body's layers are frozen and know nothing: their weights are random."
RANDOM_TRAIN = "Everything is learnt from these photos alone."


def story(plan: Plan) -> str:
    """Tell in a few sentences what is about to happen: pictures, network, cut, and each phase."""
    subject, origin = plan.subject, plan.subject.origin
    known = origin.metadata.get("training") or origin.weights
    body = sum(state.total for state in plan.states[0] if not state.in_head)
    without = " without its last layer" if body < subject.parameters else ""
    cut = f"{origin.removed} is removed, and a new head of random weights put there"
    if origin.head_state == MEANS:
        cut = f"{origin.removed} is removed, and a head put there that knows each class's mean"
    if origin.head_is_kept:
        cut = f"The head is {origin.head_state}"
    if origin.weights == AS_GIVEN:
        known, cut = "As its caller made it", "Nothing is removed"
    dropped = f" The trained one is not used: {origin.head_dropped}." if origin.head_dropped else ""
    paragraphs = {
        "pictures": f"{subject.n_train} to learn from and {subject.n_valid} to be tested on, of "
        f"{len(subject.classes)} classes: {first_few(subject.classes)}. Batches of "
        f"{subject.batch_size}, {subject.preprocess.crop} px; augmentation: "
        f"{subject.augment or 'none'}.",
        "network": f"{subject.arch}, {body:,} parameters{without}. {known}.",
        "cut": f"{cut}: {HEAD_TEXTS[origin.head].format(len(subject.classes))}.{dropped}",
    }
    for number, phase in enumerate(plan.phases, 1):
        length = f"{counted(phase.epochs, 'epoch')} of {counted(phase.steps_per_epoch, 'step')}"
        paragraphs[f"phase {number}"] = f"{phase.name}, {length}. {_short_phase(plan, number - 1)}"
    for line in subject.unusual():
        name, _, text = line.partition(": ")
        decay = f", weight decay {plan.weight_decay:g}" if name == "optimizer" else ""
        paragraphs[name] = f"{text}{decay}."
    return "\n".join(
        paragraph(text, first=f"{name:10}", rest=" " * 10) for name, text in paragraphs.items()
    )


def _short_phase(plan: Plan, index: int) -> str:
    """Tell what trains, how fast, and what the batch norms do."""
    states, origin = plan.states[index], plan.subject.origin
    frozen, train = BODY_FROZEN, ALL_TRAIN
    if origin.random_body:
        frozen, train = RANDOM_FROZEN, RANDOM_TRAIN
    elif origin.weights == AS_GIVEN:
        frozen, train = "The first layers are frozen.", "All layers train."
    rates = ", ".join(
        f"{state.name} {peak:.1e}".replace(".0e", "e").replace("e-0", "e-")
        for state, peak in zip(states, plan.phases[index].lr.max(axis=0), strict=True)
        if not state.frozen
    )
    if not states[0].frozen:
        return f"{train} Largest learning rates: {rates}."
    if plan.cached_bytes[index]:
        frozen += " Their features are kept, so each picture passes through them once."
    return f"{frozen} Their batch norms: {states[0].batch_norms}. Largest learning rate: {rates}."
