"""The operator Attention in float64, in NumPy alone, from its text."""

import numpy as np

ATTRIBUTES = {
    "is_causal": 0,
    "q_num_heads": None,
    "kv_num_heads": None,
    "scale": None,
    "softcap": 0.0,
    "qk_matmul_output_mode": 0,
    "softmax_precision": None,
    "left_window_size": -1,
    "right_window_size": -1,
}
OUTPUTS = ["Y", "present_key", "present_value", "qk_matmul_output"]


def attention(opset, attributes, inputs):
    """All outputs by name."""
    q, k, v = (inputs[name].astype(np.float64) for name in "QKV")
    rank = q.ndim
    if rank == 3:
        heads = [attributes["q_num_heads"], attributes["kv_num_heads"], attributes["kv_num_heads"]]
        q, k, v = (x.reshape(*x.shape[:2], n, -1).swapaxes(1, 2) for x, n in zip((q, k, v), heads))
    past = 0
    if "past_key" in inputs:
        past = inputs["past_key"].shape[2]
        k, v = (np.concatenate([inputs[name], x], axis=2) for name, x in (("past_key", k), ("past_value", v)))
    present = {"present_key": k, "present_value": v}
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))

    scale = attributes["scale"]
    scaled = np.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    cap = attributes["softcap"]
    capped = cap * np.tanh(scaled / cap) if cap else scaled
    sees, added = mask(opset, inputs.get("attn_mask"), capped.shape)
    sees = sees & positions(attributes, inputs.get("nonpad_kv_seqlen"), past, capped.shape)
    masked = np.where(sees, capped + added, -np.inf)
    weights = np.zeros_like(masked)
    for row in np.ndindex(masked.shape[:3]):
        seen = sees[row]
        if seen.any():
            powers = np.exp(masked[row][seen] - masked[row][seen].max())
            weights[row][seen] = powers / powers.sum()
    y = np.einsum("bhqk,bhkd->bhqd", weights, np.where(np.isfinite(v), v, 0.0))
    if rank == 3:
        y = y.swapaxes(1, 2).reshape(*inputs["Q"].shape[:2], -1)
    stages = [scaled, capped, masked, weights]
    return {"Y": y, **present, "qk_matmul_output": stages[attributes["qk_matmul_output_mode"]]}


def mask(opset, given, shape):
    """Which keys the input attn_mask lets a query see, and what it adds to the scores."""
    if given is None:
        return np.ones(shape, dtype=bool), 0.0
    short = shape[3] - given.shape[-1] if given.ndim and opset >= 24 else 0
    if given.dtype == bool:
        sees, added = given, 0.0
    else:
        given = given.astype(np.float64)
        sees, added = given != -np.inf, np.where(given == -np.inf, 0.0, given)
        added = np.broadcast_to(longer(added, short, 0.0), shape)
    return np.broadcast_to(longer(sees, short, False), shape), added


def longer(array, short, value):
    """The array with more entries on its last axis."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)], constant_values=value) if short else array


def positions(attributes, lengths, past, shape):
    """Which keys a query sees for their places alone."""
    batch, _, queries, keys = shape
    query, key = np.arange(queries)[:, None], np.arange(keys)[None, :]
    sees = np.ones(shape, dtype=bool)
    for entry in range(batch):
        place = query + (past if lengths is None else int(lengths[entry]) - queries)
        visible = np.ones((queries, keys), dtype=bool)
        if lengths is not None:
            visible &= key < int(lengths[entry])
        if attributes["is_causal"]:
            visible &= key <= place
        if attributes["left_window_size"] >= 0:
            visible &= key >= place - attributes["left_window_size"]
        if attributes["right_window_size"] >= 0:
            visible &= key <= place + attributes["right_window_size"]
        sees[entry] &= visible
    return sees
