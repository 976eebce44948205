"""The prose of the factory file's reference page."""

INTRODUCTION = """\
# The factory file

A factory is described by one or more YAML files. A file holds documents with `---` between them; each
says with `kind:` what it is. `tokenmill plan FILE...` shows what a change would do, `tokenmill apply`
does it. Files and directories may be given together; the order does not matter.

The problems of all files are shown at once, the first 20 of them, each with file, line and column, what was
expected and how to fix it. Editors complete and check fields with the [JSON Schema](factory.schema.json),
which `tokenmill schema` prints.

**Quantities.** Sizes are `24GB` (decimal) or `24GiB` (binary), durations `30s`, `5m`, `1h30m`, powers
`700W` or `16 MW`, bandwidths `800Gbit/s`, CPU `2` or `250m` (thousandths of a core), counts `600`,
`100k`, `1.5M`, money `0.15 USD`. A quantity without a unit is refused where a unit is needed.

**Environment.** `${NAME}` is replaced by an environment variable and `${NAME:-default}` has a default;
`$$` is a dollar sign. Inside `{...}` put quotes around it. A variable whose name looks like a secret is
refused, because what a file says is kept in the journal.

**Secrets.** A peer's `key` is a reference: `secret://env/NAME`, as `tokenmill up` has it, or
`secret://file/PATH`, from the root: `secret://file/run/secrets/b` is `/run/secrets/b`. It is resolved only
where it is used, and never stored.

**Extending.** `extends: other.yaml` in the factory document lays these documents on those of another
file: a document of the same kind and name is merged field by field, lists are replaced, and new
documents are added.

**YAML.** Scalars follow YAML 1.2: `no` is text. Tags and merge keys are refused, a key may be written
once, and a file has at most 1 MiB, 50,000 values (aliases expanded) and 32 levels.
"""

CATALOGUE = """\
## Catalogue

Types that `racks`, `nodes` and `accelerator` may name, switches and adapters of fabrics, and models and
engines that the twin knows. The last column says where a row is to be checked; idle power is assumed.
`tokenmill catalogue` lists them, with those of a file of your own (`-f`), and shows every value of one.
"""

ROWS = """\
## Rows of a catalogue

A document of kind `catalogue` holds rows as the shipped [files](../tokenmill/spec/catalogue) do, under the
name of each type. Every row has a `source`; a value with another source is written
`{is: 80 GB, source: data sheet}`. Every rate is dense. A row with the name of a shipped type may change its
prices, powers and the sizes of servers, nothing else. A model's row may name its `config: PATH/config.json`,
from the file that it is in, and state beside it what that leaves open.
"""

STATIONS = """\
## Stations of a line

In the short form a line gives `data` and, under each station's name, its parameters; the chain is then
intake, curate, tune, evaluate, gate, pack. In the long form `stations` lists every station with its
`kind`, its `needs` and its `params`.
"""
