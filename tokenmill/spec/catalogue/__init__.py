"""The built-in catalogue: what racks, nodes, accelerators, switches and models of a known type are.

One YAML file per noun; each value has a unit that is checked and a source. They describe hardware and
architectures, not what software reaches on them: that is in the twin's fitted profiles.
"""

from tokenmill.domain.catalogue import AcceleratorType as AcceleratorType
from tokenmill.domain.catalogue import AdapterType as AdapterType
from tokenmill.domain.catalogue import Catalogue as Catalogue
from tokenmill.domain.catalogue import EngineType as EngineType
from tokenmill.domain.catalogue import ModelType as ModelType
from tokenmill.domain.catalogue import NodeType as NodeType
from tokenmill.domain.catalogue import RackType as RackType
from tokenmill.domain.catalogue import SwitchType as SwitchType
from tokenmill.spec.catalogue.load import accelerator_named as accelerator_named
from tokenmill.spec.catalogue.load import catalogue as catalogue
from tokenmill.spec.catalogue.load import with_power as with_power
