"""Hold everything that a codemod may rewrite: model, optimizer, schedule, sizes.

``train(run)`` is the contract: `run` hands out batches and owns clock, data and seed.
Constants and rules are also evaluated without executing this file, so both are made of
literals, arithmetic, comparisons and the plainest built-ins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.training.kernels import squared_relu_mlp, windowed_attention

# Model
DEPTH = 8  # blocks
ASPECT_RATIO = 64  # channels a block, before rounding up to whole heads
HEAD_DIM = 128  # channels a head; what attention kernels like best
MODEL_DIM = (DEPTH * ASPECT_RATIO + HEAD_DIM - 1) // HEAD_DIM * HEAD_DIM  # channels
N_HEAD = MODEL_DIM // HEAD_DIM  # query heads
N_KV_HEAD = N_HEAD  # key and value heads; fewer make groups of queries share them
MLP_RATIO = 4  # hidden channels of the MLP for each model channel
VOCAB_SIZE = 8192  # tokens
SEQUENCE_LEN = 2048  # tokens a row that the model sees
WINDOW_PATTERN = "SSSL"  # repeated over the blocks: S short, L long; the last is long
SHORT_WINDOW = SEQUENCE_LEN // 2  # tokens back that an S block sees
ROPE_BASE = 10_000  # the slowest rotation takes about 2 pi x this many tokens
VALUE_GATE_CHANNELS = 32  # first channels of a block's input, which gate its values
SOFTCAP = 15  # largest magnitude of a logit, in nats
NORM_EPS = 2**-23  # float32's; what torch picks for bfloat16 depends on the kernel

# Initial values
EMBEDDING_STD = 1.0
LM_HEAD_STD = 0.001  # near zero: the first predictions are near uniform
MATRIX_BOUND = (3 / MODEL_DIM) ** 0.5  # uniform; a variance of 1 / MODEL_DIM
RESIDUAL_SCALAR = 1.0  # weight of the stream at the entrance of each block
X0_SCALAR = 0.1  # weight of the normalised embedding there

# Batch
TOTAL_BATCH_TOKENS = 2**19  # tokens an optimizer step
MICRO_BATCH_ROWS = 128  # rows a backward pass; as many as fit in memory

# Schedule, in shares of the time budget
WARMUP_SHARE = 0.0  # linear from zero
WARMDOWN_SHARE = 0.5  # linear to FINAL_LR_SHARE
FINAL_LR_SHARE = 0.0  # of the peak learning rate

# AdamW, for what is not a matrix of a block
ADAM_LR_SCALE = (MODEL_DIM / 768) ** -0.5  # of rates tuned at 768 channels
EMBEDDING_LR = 0.6  # times ADAM_LR_SCALE
VALUE_EMBEDDING_LR = EMBEDDING_LR  # times ADAM_LR_SCALE
LM_HEAD_LR = 0.004  # times ADAM_LR_SCALE
X0_SCALAR_LR = 0.5
RESIDUAL_SCALAR_LR = 0.005  # a change here is multiplied over all later blocks
ADAM_BETA1 = 0.8
ADAM_BETA2 = 0.95
X0_SCALAR_BETA1 = 0.96
ADAM_EPS = 1e-10

# Muon, for the matrices of the blocks
MUON_LR = 0.04
MUON_MOMENTUM_START = 0.85
MUON_MOMENTUM = 0.95
MUON_MOMENTUM_WARMUP_STEPS = 300
MUON_BETA2 = 0.95  # of the second moments of rows or columns
MUON_WEIGHT_DECAY = 0.2  # at the start; falls linearly to zero over the budget
POLAR_EXPRESS_STEPS = 5
POLAR_EXPRESS_MARGIN = 1.02  # keeps rounding from lifting a singular value above 1
POLAR_EXPRESS = (  # odd quintics a, b, c; https://arxiv.org/abs/2505.16932
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# Rules
assert DEPTH >= 1, f"DEPTH={DEPTH} is below 1."
assert HEAD_DIM % 2 == 0, f"HEAD_DIM={HEAD_DIM} is odd: rotation pairs its channels."
assert MODEL_DIM >= 1, f"MODEL_DIM={MODEL_DIM} is below 1."
assert MODEL_DIM % HEAD_DIM == 0, (
    f"MODEL_DIM={MODEL_DIM} is not a multiple of HEAD_DIM={HEAD_DIM}."
)
assert N_KV_HEAD >= 1, f"N_KV_HEAD={N_KV_HEAD} is below 1."
assert N_HEAD % N_KV_HEAD == 0, (
    f"N_HEAD={N_HEAD} is not a multiple of N_KV_HEAD={N_KV_HEAD}."
)
assert 1 <= VALUE_GATE_CHANNELS <= MODEL_DIM, (
    f"VALUE_GATE_CHANNELS={VALUE_GATE_CHANNELS} is not in 1..MODEL_DIM={MODEL_DIM}."
)
assert WINDOW_PATTERN, "WINDOW_PATTERN='' names no window."
assert set(WINDOW_PATTERN) <= set("SL"), (
    f"WINDOW_PATTERN={WINDOW_PATTERN!r} is not made of S and L."
)
assert 1 <= SHORT_WINDOW <= SEQUENCE_LEN, (
    f"SHORT_WINDOW={SHORT_WINDOW} is not in 1..SEQUENCE_LEN={SEQUENCE_LEN}."
)
assert ROPE_BASE > 1, f"ROPE_BASE={ROPE_BASE} is not above 1."
assert SOFTCAP > 0, f"SOFTCAP={SOFTCAP} is not above 0."
assert TOTAL_BATCH_TOKENS >= 1, f"TOTAL_BATCH_TOKENS={TOTAL_BATCH_TOKENS} is below 1."
assert MICRO_BATCH_ROWS >= 1, f"MICRO_BATCH_ROWS={MICRO_BATCH_ROWS} is below 1."
assert TOTAL_BATCH_TOKENS % (MICRO_BATCH_ROWS * SEQUENCE_LEN) == 0, (
    f"TOTAL_BATCH_TOKENS={TOTAL_BATCH_TOKENS} is not a multiple of"
    f" MICRO_BATCH_ROWS={MICRO_BATCH_ROWS} x SEQUENCE_LEN={SEQUENCE_LEN}."
)
assert 0 <= WARMUP_SHARE <= 1, f"WARMUP_SHARE={WARMUP_SHARE} is not in 0..1."
assert 0 <= WARMDOWN_SHARE <= 1, f"WARMDOWN_SHARE={WARMDOWN_SHARE} is not in 0..1."
assert WARMUP_SHARE + WARMDOWN_SHARE <= 1, (
    f"WARMUP_SHARE={WARMUP_SHARE} + WARMDOWN_SHARE={WARMDOWN_SHARE} is above 1."
)
assert 0 <= FINAL_LR_SHARE <= 1, f"FINAL_LR_SHARE={FINAL_LR_SHARE} is not in 0..1."
assert 1 <= POLAR_EXPRESS_STEPS <= len(POLAR_EXPRESS), (
    f"POLAR_EXPRESS_STEPS={POLAR_EXPRESS_STEPS} is not in 1..{len(POLAR_EXPRESS)}."
)


def uniform(bound: float):
    """Return an initial value: uniform in -bound..bound."""
    return lambda weight, generator: weight.uniform_(-bound, bound, generator=generator)


def normal(std: float):
    """Return an initial value: normal around zero."""
    return lambda weight, generator: weight.normal_(0.0, std, generator=generator)


def constant(value: float):
    """Return an initial value: `value` everywhere."""
    return lambda weight, generator: weight.fill_(value)


def parameter(*shape: int, init) -> nn.Parameter:
    """Make a float32 parameter that ``initialize`` will fill by `init`."""
    weight = nn.Parameter(torch.empty(shape))
    weight.init = init
    return weight


class Linear(nn.Module):
    """Multiply by a float32 matrix, in the dtype of the input.

    Attention and MLP take `matrix` itself, for products with more than one.
    """

    def __init__(self, inputs: int, outputs: int, init) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs, init=init)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)  # (outputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix(x.dtype))


class Embedding(nn.Module):
    """Look up one row a token; its dtype is that of all activations."""

    def __init__(self, rows: int, channels: int, init) -> None:
        super().__init__()
        self.weight = parameter(rows, channels, init=init)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


def norm(x: Tensor) -> Tensor:
    """Scale the last dimension to a root mean square of 1, without weights."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def rotary_tables() -> tuple[Tensor, Tensor]:
    """Return cosines and sines of each position's angles, each (T, 1, D).

    Channels i and i + D/2 turn by the same angle; the sines of the latter are negative.
    """
    channel = torch.arange(0, HEAD_DIM, 2, dtype=torch.float32)
    frequency = ROPE_BASE ** (-channel / HEAD_DIM)  # (D/2,) radians a token
    position = torch.arange(SEQUENCE_LEN, dtype=torch.float32)
    angle = torch.outer(position, frequency)[:, None, :]  # (T, 1, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, -sin), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of x (B, T, H, D) by the angle of their position.

    https://arxiv.org/abs/2104.09864
    """
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # i is where i + D/2 was
    return x * cos + swapped * sin


def project(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Apply several linears to x (B, T, C) at once, in heads (B, T, its heads, D).

    As one product they read x once.
    """
    matrices = [linear.matrix(x.dtype) for linear in linears]
    heads = F.linear(x, torch.cat(matrices)).unflatten(-1, (-1, HEAD_DIM))
    return heads.split([len(matrix) // HEAD_DIM for matrix in matrices], dim=2)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Mix the values of each token and of the `window` tokens before it.

    Args:
        q: Queries (B, T, N_HEAD, D).
        k: Keys (B, T, N_KV_HEAD, D).
        v: Values, shaped as the keys.
        window: Tokens back; SEQUENCE_LEN for all of them.
    """
    if k.size(2) < q.size(2):  # not every kernel knows groups of queries
        repeats = q.size(2) // k.size(2)
        k = k.repeat_interleave(repeats, dim=2)  # (B, T, N_HEAD, D)
        v = v.repeat_interleave(repeats, dim=2)  # (B, T, N_HEAD, D)
    return windowed_attention(q, k, v, window)  # (B, T, N_HEAD, D)


def layer_window(layer: int) -> int:
    """Return how many tokens back block `layer` sees."""
    is_last = layer == DEPTH - 1
    is_long = WINDOW_PATTERN[layer % len(WINDOW_PATTERN)] == "L"
    return SEQUENCE_LEN if is_last or is_long else SHORT_WINDOW


def has_value_embedding(layer: int) -> bool:
    """Say whether block `layer` has one: every other block does, the last included."""
    return layer % 2 == (DEPTH - 1) % 2


class CausalSelfAttention(nn.Module):
    """Let each token read from tokens before it.

    In some blocks the values also hold an embedding of the token itself, so that what
    a token is need not travel through the stream (https://arxiv.org/abs/2410.17897).
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.window = layer_window(layer)
        self.query = Linear(MODEL_DIM, N_HEAD * HEAD_DIM, uniform(MATRIX_BOUND))
        self.key = Linear(MODEL_DIM, N_KV_HEAD * HEAD_DIM, uniform(MATRIX_BOUND))
        self.value = Linear(MODEL_DIM, N_KV_HEAD * HEAD_DIM, uniform(MATRIX_BOUND))
        self.out = Linear(N_HEAD * HEAD_DIM, MODEL_DIM, constant(0.0))
        if has_value_embedding(layer):
            self.value_gate = Linear(VALUE_GATE_CHANNELS, N_KV_HEAD, constant(0.0))

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        q, k, v = project(x, self.query, self.key, self.value)

        if value_embedding is not None:
            gate = self.value_gate(x[..., :VALUE_GATE_CHANNELS])  # (B, T, H)
            gate = 2 * torch.sigmoid(gate)  # 1 at the start
            v = v + gate[..., None] * value_embedding.view_as(v)

        q = norm(q)
        k = norm(k)
        q = apply_rotary(q, cos, sin)
        k = apply_rotary(k, cos, sin)

        y = attend(q, k, v, self.window)  # (B, T, H, D)
        return self.out(y.flatten(2))  # (B, T, C)


class MLP(nn.Module):
    """Transform each token by itself, through squared ReLUs.

    https://arxiv.org/abs/2109.08668
    """

    def __init__(self) -> None:
        super().__init__()
        hidden_dim = int(MLP_RATIO * MODEL_DIM)
        self.up = Linear(MODEL_DIM, hidden_dim, uniform(MATRIX_BOUND))
        self.down = Linear(hidden_dim, MODEL_DIM, constant(0.0))

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up.matrix(x.dtype), self.down.matrix(x.dtype)
        return squared_relu_mlp(x, up, down)  # self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Add attention, then an MLP, to the stream; at the start both add zero."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.attention = CausalSelfAttention(layer)
        self.mlp = MLP()

    def forward(
        self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = x + self.attention(norm(x), value_embedding, cos, sin)
        x = x + self.mlp(norm(x))
        return x


class GPT(nn.Module):
    """Map token ids (B, T) to the logits (B, T, V) of the tokens that follow."""

    def __init__(self) -> None:
        super().__init__()
        kv_dim = N_KV_HEAD * HEAD_DIM
        self.embedding = Embedding(VOCAB_SIZE, MODEL_DIM, normal(EMBEDDING_STD))
        self.value_embeddings = nn.ModuleDict({
            str(layer): Embedding(VOCAB_SIZE, kv_dim, uniform(MATRIX_BOUND))
            for layer in range(DEPTH)
            if has_value_embedding(layer)
        })
        self.blocks = nn.ModuleList([Block(layer) for layer in range(DEPTH)])
        self.residual_scalars = parameter(DEPTH, init=constant(RESIDUAL_SCALAR))
        self.x0_scalars = parameter(DEPTH, init=constant(X0_SCALAR))
        self.lm_head = Linear(MODEL_DIM, VOCAB_SIZE, normal(LM_HEAD_STD))
        cos, sin = rotary_tables()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.size(1)
        x0 = norm(self.embedding(tokens))  # (B, T, C)
        cos = self.cos[:T].to(x0.dtype)  # (T, 1, D)
        sin = self.sin[:T].to(x0.dtype)  # (T, 1, D)

        x = x0
        for layer, block in enumerate(self.blocks):
            x = self.residual_scalars[layer] * x + self.x0_scalars[layer] * x0
            value_embedding = None
            if has_value_embedding(layer):
                value_embedding = self.value_embeddings[str(layer)](tokens)  # (B, T, C)
            x = block(x, value_embedding, cos, sin)

        logits = self.lm_head(norm(x)).float()  # (B, T, V)
        return SOFTCAP * torch.tanh(logits / SOFTCAP)


def initialize(model: nn.Module, run) -> None:
    """Fill every parameter from a generator of its own name.

    So an edit shares with its base all initial values that it does not touch.
    """
    for name, weight in model.named_parameters():
        assert hasattr(weight, "init"), f"{name} was not made by parameter()."
        weight.init(weight.data, run.generator(name))


def build_model(run) -> GPT:
    """Build the model on the run's device, in bfloat16 where that is a GPU.

    Only embeddings are stored so: activations take their dtype from them, and each
    matrix keeps float32 values that it casts when it is used.
    """
    model = GPT()
    initialize(model, run)
    model.to(run.device)
    if run.device.type == "cuda":
        for module in model.modules():
            if isinstance(module, Embedding):
                module.to(torch.bfloat16)
    return model


def compiled(function, device: torch.device):
    """Compile `function` for a GPU; on a CPU a short run would not earn it back."""
    if device.type == "cuda":
        return torch.compile(function, dynamic=False)
    return function


def polar_express(matrices: Tensor) -> Tensor:
    """Move all singular values of each matrix (N, rows, columns) close to 1.

    https://arxiv.org/abs/2505.16932
    """
    is_tall = matrices.size(1) > matrices.size(2)
    X = matrices.mT if is_tall else matrices  # the products below are then small
    X = X.bfloat16() if X.is_cuda else X
    X = X / (POLAR_EXPRESS_MARGIN * X.norm(dim=(1, 2), keepdim=True) + 1e-6)
    for a, b, c in POLAR_EXPRESS[:POLAR_EXPRESS_STEPS]:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    X = X.to(matrices.dtype)
    return X.mT if is_tall else X


def even_out(update: Tensor, second_moment: Tensor, beta2: Tensor) -> Tensor:
    """Divide each row (or column) by its running size, keeping the whole's norm.

    https://arxiv.org/abs/2510.05491, here along the longer side of the matrix.
    """
    averaged = 2 if second_moment.size(2) == 1 else 1
    now = update.square().mean(dim=averaged, keepdim=True)
    second_moment.lerp_(now, 1 - beta2)
    evened = update * second_moment.clamp_min(1e-10).rsqrt()
    norm_before = update.norm(dim=(1, 2), keepdim=True)
    norm_after = evened.norm(dim=(1, 2), keepdim=True)
    return evened * (norm_before / norm_after.clamp_min(1e-10))


def muon_update(
    weights: Tensor,
    gradients: Tensor,
    momentum_buffer: Tensor,
    second_moment: Tensor,
    momentum: Tensor,
    beta2: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
) -> None:
    """Change `weights` and both buffers in place by one step of Muon.

    All matrices come stacked (N, rows, columns); the last four are 0-d, because a
    number that changes would be compiled anew.
    """
    momentum_buffer.lerp_(gradients, 1 - momentum)
    update = torch.lerp(gradients, momentum_buffer, momentum)  # Nesterov
    update = polar_express(update)
    update = even_out(update, second_moment, beta2)
    # Decay only what the update shrinks too: https://arxiv.org/abs/2510.12402
    shrinks = update * weights >= 0
    weights.sub_(lr * (update + weight_decay * weights * shrinks))


class Muon(torch.optim.Optimizer):
    """Step matrices in the direction of their orthogonalised momentum.

    Matrices of one shape are stacked and updated as one.
    https://kellerjordan.github.io/posts/muon/
    """

    def __init__(self, groups: list[dict], device: torch.device) -> None:
        super().__init__(groups, defaults={})
        self.update = compiled(muon_update, device)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for shape in dict.fromkeys(weight.shape for weight in group["params"]):
                self.step_shape(group, *shape)

    def step_shape(self, group: dict, rows: int, columns: int) -> None:
        """Step the matrices of one group and one shape."""
        matrices = [w for w in group["params"] if w.shape == (rows, columns)]
        weights = torch.stack(matrices)  # (N, rows, columns)
        for matrix in matrices:
            if matrix.grad is None:  # an edit may leave a matrix without use
                matrix.grad = torch.zeros_like(matrix)
        gradients = torch.stack([matrix.grad for matrix in matrices])

        state = self.state[matrices[0]]
        if not state:
            sizes = weights[:, :, :1] if rows >= columns else weights[:, :1, :]
            state["momentum_buffer"] = torch.zeros_like(weights)
            state["second_moment"] = torch.zeros_like(sizes)
        self.update(
            weights,
            gradients,
            state["momentum_buffer"],
            state["second_moment"],
            momentum=torch.tensor(group["momentum"]),
            beta2=torch.tensor(group["beta2"]),
            lr=torch.tensor(group["lr"] * max(1.0, rows / columns) ** 0.5),
            weight_decay=torch.tensor(group["weight_decay"]),
        )
        torch._foreach_copy_(matrices, list(weights.unbind()))


def build_optimizers(model: GPT) -> list[torch.optim.Optimizer]:
    """Put every parameter into exactly one group of AdamW or Muon."""
    adamw_groups = [
        dict(
            name="embedding",
            params=list(model.embedding.parameters()),
            lr=EMBEDDING_LR * ADAM_LR_SCALE,
            weight_decay=0.0,
        ),
        dict(
            name="value_embedding",
            params=list(model.value_embeddings.parameters()),
            lr=VALUE_EMBEDDING_LR * ADAM_LR_SCALE,
            weight_decay=0.0,
        ),
        dict(
            name="lm_head",
            params=list(model.lm_head.parameters()),
            lr=LM_HEAD_LR * ADAM_LR_SCALE,
            weight_decay=0.0,
        ),
        dict(
            name="residual_scalars",
            params=[model.residual_scalars],
            lr=RESIDUAL_SCALAR_LR,
            weight_decay=0.0,
        ),
        dict(
            name="x0_scalars",
            params=[model.x0_scalars],
            lr=X0_SCALAR_LR,
            weight_decay=0.0,
            betas=(X0_SCALAR_BETA1, ADAM_BETA2),
        ),
    ]
    muon_groups = [
        dict(
            name="matrices",
            params=list(model.blocks.parameters()),
            lr=MUON_LR,
            momentum=MUON_MOMENTUM_START,
            beta2=MUON_BETA2,
            weight_decay=MUON_WEIGHT_DECAY,
        ),
    ]
    groups = adamw_groups + muon_groups
    grouped = {weight for group in groups for weight in group["params"]}
    left_out = [name for name, w in model.named_parameters() if w not in grouped]
    assert not left_out, f"No optimizer group holds {', '.join(left_out)}."
    for group in groups:
        group["peak_lr"] = group["lr"]
    betas = ADAM_BETA1, ADAM_BETA2
    adamw = torch.optim.AdamW(adamw_groups, betas=betas, eps=ADAM_EPS, fused=True)
    return [adamw, Muon(muon_groups, model.lm_head.weight.device)]


def lr_scale(progress: float) -> float:
    """Return the share of the peak learning rate at `progress` (0..1) of the budget."""
    if progress < WARMUP_SHARE:
        return progress / WARMUP_SHARE
    if progress <= 1 - WARMDOWN_SHARE:
        return 1.0
    left = (1 - progress) / WARMDOWN_SHARE
    return left + (1 - left) * FINAL_LR_SHARE


def muon_momentum(step: int) -> float:
    """Return Muon's momentum, which grows over the first steps."""
    grown = min(step / MUON_MOMENTUM_WARMUP_STEPS, 1.0)
    return (1 - grown) * MUON_MOMENTUM_START + grown * MUON_MOMENTUM


def muon_weight_decay(progress: float) -> float:
    """Return Muon's weight decay, which falls to zero over the budget."""
    return MUON_WEIGHT_DECAY * (1 - progress)


def apply_schedule(
    optimizers: list[torch.optim.Optimizer], step: int, progress: float
) -> None:
    """Set what changes from step to step in every group."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_scale(progress)
            if group["name"] == "matrices":
                group["momentum"] = muon_momentum(step)
                group["weight_decay"] = muon_weight_decay(progress)


def training_loss(model: nn.Module, rows: Tensor) -> Tensor:
    """Return the mean nats a token of `rows` (B, T + 1), each told all before it."""
    logits = model(rows[:, :-1])  # (B, T, V)
    targets = rows[:, 1:]  # (B, T)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(run) -> nn.Module:
    """Build the model and train it for as long as the run hands out batches.

    Args:
        run: Has ``device``; ``generator(name)``, a CPU generator keyed by the seed and
            that name; ``batches(rows)``, which yields int64 tokens (rows, T + 1) on
            the device, one hand-out a step, maybe none; ``progress``, the share of the
            budget (0..1) that had passed at the last hand-out; and ``log(loss)``.

    Returns:
        The model, whatever number of steps it had; it is never a compiled wrapper.
    """
    model = build_model(run)
    optimizers = build_optimizers(model)
    loss_of = compiled(training_loss, run.device)

    for step, tokens in enumerate(run.batches(TOTAL_BATCH_TOKENS // SEQUENCE_LEN)):
        apply_schedule(optimizers, step, run.progress)
        step_loss = torch.zeros((), device=run.device)
        for rows in tokens.split(MICRO_BATCH_ROWS):
            loss = loss_of(model, rows) * (rows.size(0) / tokens.size(0))
            loss.backward()
            step_loss += loss.detach()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.log(step_loss)
    return model
