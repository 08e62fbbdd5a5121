"""Float32 masters of half-precision weights: AdamW whose steps, gradients and moments are float32, whatever the weights are.

A bfloat16 weight has 8 significant bits, so a step below 1/512 of it is rounded away: at a learning rate of 1e-5 AdamW moves
a weight of 0.02 by 1/2000. The master gathers such steps, and the weight follows it, rounded to nearest. Gradients are the
same case: in bfloat16 the 257th of equal micro-batch gradients no longer changes their sum. So `.grad` is float32 and each
micro-batch's is added in float32 (`Tensor.grad_dtype`); sums over ranks and clipping find float32 gradients there.

A trained bfloat16 parameter costs 18 bytes: weight 2, gradient 4, master 4, moments 8.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vrlvr.errors import UserError

_KEY = "master"  # of the optimizer's state, beside AdamW's own exp_avg, exp_avg_sq and step


class MasterAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) with a float32 master of every parameter of half precision.

    Float32 parameters are stepped directly, so without others this is `torch.optim.AdamW`. `param_groups` hold the masters;
    `state_dict` has them as tensors of its state, from which they are restored, weights with them.
    """

    def __init__(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        """params: of the model, in the order of the state dict. options: those of AdamW. Call before the first backward."""
        self._weights = list(params)
        self._masters = [w if w.dtype == torch.float32 else nn.Parameter(w.detach().float()) for w in self._weights]
        for weight in self._weights:
            weight.grad_dtype = torch.float32
        super().__init__(self._masters, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure would fill the weights' gradients
        for weight, master in zip(self._weights, self._masters, strict=True):
            master.grad = weight.grad
        super().step()
        self._round_to_weights()
        for _, master in self._own_masters():
            master.grad = None  # it is the weight's, whose memory `zero_grad` shall free

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the weights."""
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        packed = super().state_dict()
        masters = {i: {_KEY: master.detach()} for i, master in self._own_masters()}
        moments = packed["state"]
        return packed | {"state": {i: moments.get(i, {}) | masters.get(i, {}) for i in sorted(moments | masters)}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError for the state of a run whose weights had another precision."""
        state: dict[int, dict[str, Tensor]] = {i: dict(values) for i, values in state_dict["state"].items()}
        found = {i: values.pop(_KEY) for i, values in state.items() if _KEY in values}
        own = dict(self._own_masters())
        if found.keys() != own.keys():
            raise UserError(
                f"the optimizer's state has {len(found)} float32 masters, this model {len(own)} parameters that need one; "
                "resume with the model.dtype that the run was begun with"
            )
        super().load_state_dict(state_dict | {"state": {i: values for i, values in state.items() if values}})
        for i, master in own.items():
            master.copy_(found[i])
        self._round_to_weights()

    def _own_masters(self) -> list[tuple[int, nn.Parameter]]:
        """The masters that are not the model's own parameters, by their place in the state dict."""
        pairs = zip(self._weights, self._masters, strict=True)
        return [(i, master) for i, (weight, master) in enumerate(pairs) if master is not weight]

    def _round_to_weights(self) -> None:
        own = self._own_masters()
        if own:
            torch._foreach_copy_([self._weights[i] for i, _ in own], [master for _, master in own])
