"""DLRM-v3: Meta's ranker of generative-recommenders, which is trained there and imported (`mfalcon import dlrm-v3`).

Its prefix is the user's features, then the history, an item and its actions in one token. Positions count from the
history's end and ages from the request, so the keys and values of a token change with every request: they are shared by
the candidates of one request, and by nothing else. That makes it an `EventRanker`.

Source: `DlrmHSTU` of generative-recommenders; HSTU paper (arXiv 2402.17152); parts in `dlrm_parts.py`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kernels.cpu.library import Kernel
from kernels.reference import prefix_attention, target_attention
from mfalcon.attention import AttentionForm
from mfalcon.masked_attention import FullAttention
from mfalcon.models.base import EventRanker, EventSide, EventTokens, Reader, Targets
from mfalcon.models.config import RankerConfig
from mfalcon.models.dlrm_parts import ActionsSideBySide, Places, Postprocessor, SwishNorm, UserTokens, dlrm_of, encoder
from mfalcon.models.layer import Stack

_SECOND_MS = 1_000


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a trainer took from the batch of a request and a server holds constant: what divides attention, and how many
    candidates were counted with the events. For who compares scores with a trainer's.
    """

    attention_norm: float
    counted_candidates: int


class DlrmV3(EventRanker):
    """The model around its layers: prefix and candidates as tokens, and what is read off candidates."""

    has_layers = True
    config_part = "dlrm"
    is_trained_here = False
    why_no_states = "positions count from the end and ages from the request: K and V are of one request"

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        around, dim = dlrm_of(config), config.stack[0].dim
        self._token_scale = math.sqrt(dim)
        self.actions = ActionsSideBySide(len(config.actions), around.action_dim)
        self.user = UserTokens(config)
        self.content = encoder(around.table_dim, around.hidden_dim, dim)
        self.action = encoder(self.actions.width, around.hidden_dim, dim)
        self.places = Places(around, dim)
        self.stack = Stack(*config.stack)
        self.post = Postprocessor(around, dim)
        self.item = encoder(around.table_dim, around.item_dim, dim)
        self.heads = nn.Sequential(
            nn.Linear(dim, config.head_dim), SwishNorm(config.head_dim), nn.Linear(config.head_dim, len(config.tasks))
        )

    @property
    def num_user_tokens(self) -> int:
        """Tokens of the prefix before the first event."""
        return len(self.config.context_features)

    @property
    def lengths(self) -> Lengths:
        """Those that it serves with."""
        return Lengths(self.config.stack[0].attention_norm, dlrm_of(self.config).counted_candidates)

    def prefix_tokens(self, events: EventTokens, context: Tensor, now_s: Tensor, lengths: Lengths) -> Tensor:
        """Events [n] and the context codes of a request [num_features] at its time [] -> [num_features + n, dim]."""
        user = self.user(context, len(events.rows) + lengths.counted_candidates)
        history = self.content(self.items(events.rows)) + self.action(self.actions(events.actions))
        times_s = torch.div(events.times, _SECOND_MS, rounding_mode="floor")
        x = torch.cat([user, history]) * self._token_scale
        out: Tensor = x + self.places.of_prefix(times_s, now_s, len(user))
        return out

    def target_tokens(self, targets: Targets) -> Tensor:
        """Candidates [m] -> [m, dim]."""
        x = (self.content(self.items(targets.rows)) + self.action(self.actions.of_target)) * self._token_scale
        out: Tensor = x + self.places.of_target(self.num_user_tokens)
        return out

    def predict(self, hidden: Tensor, targets: Targets, now_s: Tensor) -> Tensor:
        """Hidden candidates [m, dim] -> raw outputs [m, num_tasks], heads and what is before them in float32 or above.

        `items` of a candidate: the item's own encoder, which the user's side is multiplied with.
        """
        wide = self.heads[0].get_parameter("weight").dtype
        user: Tensor = self.post(hidden.to(wide), now_s.expand(len(hidden)))
        raw: Tensor = self.heads(user * self.item(self.items(targets.rows)).to(wide))
        return raw

    def now_s(self, time_ms: int) -> Tensor:
        """A request's time as the model reads it, []."""
        return torch.tensor(time_ms // _SECOND_MS, device=self.device)

    def outputs(self, events: EventTokens, valid: Tensor, targets: Targets, visible: Tensor, times: Tensor) -> Tensor:
        """See `Ranker.outputs`. The definition: one masked forward for all targets that see the same events at the same
        time, for a prefix is of one request.
        """
        batch, num = targets.rows.shape
        raw = self.heads[0].get_parameter("weight").new_zeros(batch, num, len(self.config.tasks))
        context = targets.context.expand(batch, num, -1)
        for row in range(batch):
            asked = torch.cat([visible[row].unsqueeze(-1), times[row].unsqueeze(-1), context[row]], dim=-1)
            for one in asked.unique(dim=0):
                index = (asked == one).all(dim=-1).nonzero().squeeze(-1)
                seen, time_ms = int(one[0]), int(one[1])
                window = slice(max(0, seen - self.config.max_history), seen)
                read = EventTokens(*(getattr(events, name)[row, window] for name in EventTokens.__slots__))
                candidates = Targets(targets.rows[row, index], one[2:])
                raw = raw.index_put((torch.full_like(index, row), index), self.masked(read, candidates, time_ms))
        return raw

    def masked(self, events: EventTokens, targets: Targets, time_ms: int, lengths: Lengths | None = None) -> Tensor:
        """One dense forward over [user, events, candidates], each of which sees itself and what is before it, of the
        candidates only itself: [m, num_tasks]. lengths: those of a trainer, where they are not the model's own.
        """
        lengths, now_s = lengths or self.lengths, self.now_s(time_ms)
        prefix = self.prefix_tokens(events, targets.context, now_s, lengths)
        x = torch.cat([prefix, self.target_tokens(targets)])
        n, size = len(prefix), len(x)
        mask = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
        mask[n:, n:] = torch.eye(size - n, dtype=torch.bool, device=x.device)
        nothing = torch.zeros(size, dtype=torch.int64, device=x.device)
        attend = FullAttention(mask, nothing, nothing, nothing)

        def normed(layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
            return attend(layer, q, k, v, replace(form, norm=lengths.attention_norm))

        return self.predict(self.stack(x, normed)[n:], targets, now_s)

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """See `Ranker.rescale`."""
        last = self.heads[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight[task] *= scale
            last.bias[task] = scale * last.bias[task] + shift

    def cast(self, dtype: torch.dtype) -> None:
        """See `Ranker.cast`."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            self.heads.float()
            self.post.float()

    def reader(self, kernel: Kernel | None = None) -> Reader:
        """See `EventRanker.reader`. With torch's layers; a stack backend has `RequestStack`."""
        return DlrmReader(self)


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """What the candidates of one request share: keys and values of each layer, [num_heads, n, head_dim], and how many
    events were read at what time.
    """

    keys: list[tuple[Tensor, Tensor]]
    num_events: int
    now_s: Tensor


class _Prefix:
    """The phase that makes them (`mfalcon.attention.Keep`)."""

    def __init__(self, num_tokens: int, norm: float, device: torch.device) -> None:
        self.keys = list[tuple[Tensor, Tensor]]()
        self._times, self._norm = torch.zeros(num_tokens, dtype=torch.int64, device=device), norm

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        self.keep(layer, k, v, form)
        own_k, own_v = self.keys[layer]
        return prefix_attention(q, own_k, own_v, self._times, None, logit_scale=form.logit_scale, norm=self._norm)

    def keep(self, layer: int, k: Tensor, v: Tensor, form: AttentionForm) -> None:
        assert layer == len(self.keys)
        self.keys.append((k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()))


class DlrmReader:
    """M-FALCON within one request: the prefix once, the candidates in microbatches."""

    def __init__(self, model: DlrmV3, lengths: Lengths | None = None) -> None:
        """lengths: those of a trainer, where they are not the model's own."""
        self._model, self._lengths = model, lengths or model.lengths

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """See `Reader`."""
        model, now_s = self._model, self._model.now_s(time_ms)
        tokens = model.prefix_tokens(events, context, now_s, self._lengths)
        phase = _Prefix(len(tokens), self._lengths.attention_norm, tokens.device)
        model.stack.encode(tokens, phase)
        return RequestKeys(phase.keys, len(events.rows), now_s)

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`."""
        assert isinstance(side, RequestKeys)
        norm = self._lengths.attention_norm

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
            scale = form.logit_scale
            return target_attention(q, k, v, *side.keys[layer], None, None, logit_scale=scale, norm=norm)

        out = []
        for index in torch.arange(len(targets.rows), device=targets.rows.device).split(microbatch):
            part = Targets(targets.rows[index], targets.context)
            hidden = self._model.stack(self._model.target_tokens(part), attend)
            out.append(self._model.predict(hidden, part, side.now_s))
        return torch.cat(out)
