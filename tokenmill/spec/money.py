"""What may be written of quotas and prices, as strict pydantic models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tokenmill.spec.fields import (
    AliasName,
    Count,
    Currency,
    Moment,
    Money,
    Name,
    PerDay,
    PerMinute,
    PriceTarget,
    TypePrices,
    choice,
)
from tokenmill.spec.strict import Strict


class QuotaFields(Strict):
    """Upper bounds of use. A bound that is not written does not limit.

    One of a day or month that is written while it runs counts what is used from then on.
    """

    requests_per_minute: PerMinute | None = Field(
        default=None, description="Requests that may start in a minute."
    )
    tokens_per_minute: PerMinute | None = Field(
        default=None, description="Input and output tokens in a minute."
    )
    tokens_per_day: PerDay | None = Field(default=None, description="Input and output tokens in a day.")
    concurrent_requests: Count | None = Field(default=None, description="Requests open at once.")
    money_per_day: Money | None = Field(
        default=None, description="What its tokens may cost in a UTC day: 20 USD."
    )
    money_per_month: Money | None = Field(
        default=None, description="What its tokens may cost in a UTC calendar month: 500 USD."
    )
    over_budget: Annotated[str, *choice("refuse", "warn")] = Field(
        default="refuse", description="What happens beyond the bounds in money."
    )


class PriceDocument(Strict):
    """What tokens of one model cost, per million, and the work on it."""

    kind: Literal["price"]
    model: PriceTarget = Field(description='Deployment, model, or "*" for all the rest.')
    input: Money = Field(default=(0, ""), description="Per million input tokens: 0.15 USD.")
    cached: Money | None = Field(
        default=None, description="Per million input tokens found in a cache; as `input` if not written."
    )
    output: Money = Field(default=(0, ""), description="Per million output tokens.")
    reasoning: Money | None = Field(
        default=None, description="Per million output tokens of reasoning; as `output` if not written."
    )
    valid_from: Moment = Field(
        default=0,
        alias="from",
        description="Holds for requests admitted from then on, until a later price of the model begins.",
    )
    accelerator_hour: TypePrices = Field(
        default={"*": (0, "")},
        description='Per hour of an accelerator, or by type: `{h200-sxm: 2 USD, "*": 1 USD}`, `*`: rest.',
    )
    kwh: Money = Field(default=(0, ""), description="Per kilowatt-hour.")
    currency: Currency | None = Field(
        default=None, description="Currency of amounts that name none; else USD."
    )


class QuotaDocument(QuotaFields):
    """Bounds of what a tenant, or a project of it, may use of one deployment, within its other quotas."""

    kind: Literal["quota"]
    tenant: Name = Field(description="The tenant.")
    project: Name | None = Field(default=None, description="One project of it; else all together.")
    model: AliasName = Field(description="The deployment, by the name that clients put in `model`.")
