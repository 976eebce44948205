"""The built-in catalogue: what racks, nodes, accelerators, switches and models of a known type are.

One YAML file per noun; each value has a unit that is checked and a source. They describe hardware and
architectures, not what software reaches on them: that is in the twin's fitted profiles.
"""

from tokenmill.spec.catalogue.load import accelerator_named as accelerator_named
from tokenmill.spec.catalogue.load import catalogue as catalogue
from tokenmill.spec.catalogue.types import AcceleratorType as AcceleratorType
from tokenmill.spec.catalogue.types import AdapterType as AdapterType
from tokenmill.spec.catalogue.types import Catalogue as Catalogue
from tokenmill.spec.catalogue.types import EngineType as EngineType
from tokenmill.spec.catalogue.types import ModelType as ModelType
from tokenmill.spec.catalogue.types import NodeType as NodeType
from tokenmill.spec.catalogue.types import RackType as RackType
from tokenmill.spec.catalogue.types import SwitchType as SwitchType
