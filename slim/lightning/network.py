"""Which part of a LightningModule is the network: an attribute path, a function, or the only candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from slim.channels import unwrap
from slim.errors import SlimError, nearest

Network = str | Callable[[Any], nn.Module] | None
"""How a user names a network: ``"model.backbone"``, ``lambda module: module.model``, or nothing."""


def find_network(module: nn.Module, network: Network = None) -> nn.Module:
    """The network to make thin, without the wrapper of ``torch.compile``.

    Args:
        module: Usually a LightningModule.
        network: An attribute path (properties count, ``""`` is the module itself), a function from the module to the
            network, or ``None``: the only child with convolutions or normalization scales that is no average.

    Raises:
        SlimError: There is no such attribute, it is no network, or none or several could be meant.

    >>> class Mine(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net, self.loss = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.CrossEntropyLoss()
    >>> mine = Mine()
    >>> find_network(mine) is mine.net, find_network(mine, "net.0") is mine.net[0]
    (True, True)
    """
    check_network(network)
    if isinstance(network, str):
        found: Any = _by_path(module, network)
    elif network is not None and not isinstance(network, nn.Module):
        found = _called(network, module)
    else:
        found = network if network is not None else _only_candidate(module)
    if not isinstance(found, nn.Module):
        advice = "Set network to the attribute that holds the network."
        if found is None:
            advice = "Make it in the module's constructor or configure_model, or name another attribute."
        raise SlimError(
            f"network must name a torch.nn.Module. Got network={_shown(network)} of type {type(found).__name__}. "
            f"{advice}"
        )
    return unwrap(found)


def check_network(network: Any) -> None:
    """Check that ``network`` can name one.

    Raises:
        SlimError: It is neither a path, nor a function, nor ``None``.
    """
    if network is not None and not isinstance(network, str) and (isinstance(network, type) or not callable(network)):
        raise SlimError(
            f"A network must be given as the path of an attribute, or as a function of the module. "
            f"Got network={network!r}. Set for example network='net'."
        )


def network_key(network: Network) -> str | None:
    """A key for the ``network`` argument of a callback, the same in every process.

    Returns:
        The path; of a function its name with the names and plain values that it uses; ``None`` for nothing.

    >>> network_key("net.0"), network_key(lambda module: module.left) == network_key(lambda module: module.right)
    ('net.0', False)
    """
    if network is None or isinstance(network, str):
        return network
    code = getattr(network, "__code__", None)
    cells = [cell.cell_contents for cell in getattr(network, "__closure__", None) or ()]
    used = [*getattr(code, "co_consts", ()), *(getattr(network, "__defaults__", None) or ()), *cells]
    plain = [str(value) for value in used if isinstance(value, str | int)]
    return " ".join([_shown(network), *getattr(code, "co_names", ()), *plain])


def averaged(value: Any) -> nn.Module | None:
    """The copy inside of what averages a network: ``AveragedModel``, or timm's ``ModelEmaV2`` and the like."""
    inside = getattr(value, "module", None) if isinstance(value, AveragedModel) or hasattr(value, "decay") else None
    return inside if isinstance(inside, nn.Module) else None


def same_module(one: nn.Module, other: nn.Module) -> bool:
    """Whether two objects are one module: a view of it under another class shares its attributes."""
    return one is other or one.__dict__ is other.__dict__


def path_of(module: nn.Module, network: nn.Module) -> str:
    """Where ``network`` is registered in ``module``, as in the names of its parameters; ``""`` for the module itself.

    Raises:
        SlimError: It is not a part of the module, so its weights are in no checkpoint.
    """
    for name, part in module.named_modules():
        if same_module(part, network):
            return str(name)
    raise SlimError(
        f"The network must be a registered part of the module. Got a {type(network).__name__} that "
        f"{type(module).__name__}.named_modules() does not list. Assign it as an attribute of the module."
    )


def _called(network: Callable[[Any], nn.Module], module: nn.Module) -> Any:
    try:
        return network(module)
    except SlimError:
        raise
    except Exception as error:
        raise SlimError(
            f"network must be a function from the module to its network. Got network={_shown(network)}, which raised "
            f"{type(error).__name__}: {error}. Set network to the attribute that holds the network."
        ) from error


def _by_path(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split(".") if path else []:
        try:
            found = found[int(part)] if part.isdigit() and not hasattr(found, part) else getattr(found, part)
        except (AttributeError, IndexError, TypeError):
            known = [name for name, _ in unwrap(found).named_children()] if isinstance(found, nn.Module) else []
            hint = nearest(part, known) if known else "Name an attribute that holds a network."
            raise SlimError(
                f"network must be an attribute path of {type(module).__name__}. Got network={path!r}, and "
                f"{type(found).__name__} has no {part!r}. {hint}"
            ) from None
    return found


def _only_candidate(module: nn.Module) -> nn.Module:
    children = {name: child for name, child in module.named_children() if averaged(child) is None}
    candidates = {name: child for name, child in children.items() if _has_channels(child)}
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if not candidates:
        raise SlimError(
            f"{type(module).__name__} must hold a network. Got no attribute with convolutions or normalization layers "
            f"among {', '.join(children) or 'none'}. Set network to its attribute."
        )
    raise SlimError(
        f"The network must be unambiguous. Got {', '.join(candidates)} in {type(module).__name__}. "
        f"Set network={next(iter(candidates))!r} or another of them (network='' for the module itself)."
    )


def _has_channels(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
    return any(isinstance(part, kinds) for part in module.modules())


def _shown(network: Any) -> str:
    return repr(network) if isinstance(network, str) else getattr(network, "__qualname__", type(network).__name__)
