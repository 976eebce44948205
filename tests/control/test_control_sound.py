"""A factory over the admin API has not been through ``spec``: what would wedge the core is refused here."""

from __future__ import annotations

import pytest
from control_mill import Mill, chat, factory

from tokenmill.control.core import check
from tokenmill.control.sound import REASONS_MOST, unsound
from tokenmill.domain import events as ev
from tokenmill.domain.errors import RefusedError
from tokenmill.domain.factory import Factory, JobTemplate, Resources, Tenant
from tokenmill.domain.value import replace


def tenants(*made: Tenant) -> Factory:
    return factory(tenants=made)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (tenants(Tenant("a", parent="b", limit=1), Tenant("b", parent="a")), "its own parent: a -> b -> a"),
        (tenants(Tenant("a", parent="a")), "its own parent: a -> a"),
        (tenants(Tenant("a", parent="x")), "parent 'x', which is not there"),
        (tenants(Tenant("a", guarantee=-5)), "tenants.0.guarantee is -5: zero or more"),
        (tenants(Tenant("a", reserve=-1)), "tenants.0.reserve is -1"),
        (tenants(Tenant("a", guarantee=9, limit=2)), "promised more than its limit of 2"),
        (tenants(Tenant("a"), Tenant("a")), "tenants: 'a' is there 2 times"),
        (factory(chat(), chat()), "deployments: 'chat' is there 2 times"),
        (factory(chat(model="x")), "serves model 'x', which is not there"),
        (factory(chat(model="", line="x")), "serves line 'x', which is not there"),
        (factory(chat(slots=0)), "0 slots"),
        (factory(chat(resources=Resources(-1000))), "deployments.0.resources.cpu_millis is -1000"),
        (factory(jobs=(JobTemplate("j", "x", "p", ("true",)),)), "of tenant 'x', which is not there"),
    ],
)
def test_what_would_wedge_the_core_is_refused(mill: Mill, wrong: Factory, said: str) -> None:
    with pytest.raises(RefusedError, match="no factory can be like this") as refused:
        check(mill.state, ev.SpecApplied(mill.now, mill.state.version, wrong))
    assert said in "\n".join(refused.value.reasons)
    before = mill.state
    mill.tell(ev.SpecApplied, before.version, wrong)
    assert mill.state is before


def test_only_so_many_reasons_are_given() -> None:
    made = replace(factory(), tenants=tuple(Tenant(f"t{i}", guarantee=-1) for i in range(50)), lines=())
    assert len(unsound(made)) == REASONS_MOST + 1
    assert unsound(made)[-1] == "and 30 more"
    assert unsound(factory()) == ()
