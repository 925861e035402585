"""jaxlift: DeepLIFT for any JAX function, as a transform."""

from jaxlift import layers as layers
from jaxlift import methods as methods
from jaxlift import metrics as metrics
from jaxlift import perturbation as perturbation
from jaxlift import plots as plots
from jaxlift import references as references
from jaxlift import targets as targets
from jaxlift._arguments import ReferenceMismatchError as ReferenceMismatchError
from jaxlift._custom import custom_rule as custom_rule
from jaxlift._interpret import UnsupportedPrimitiveError as UnsupportedPrimitiveError
from jaxlift._interpret import scoped as scoped
from jaxlift._tables import DECONVNET as DECONVNET
from jaxlift._tables import GENOMICS_DEFAULT as GENOMICS_DEFAULT
from jaxlift._tables import GRADIENT as GRADIENT
from jaxlift._tables import GUIDED_BACKPROP as GUIDED_BACKPROP
from jaxlift._tables import LRP as LRP
from jaxlift._tables import RESCALE as RESCALE
from jaxlift._tables import REVEAL_CANCEL as REVEAL_CANCEL
from jaxlift._tables import WINNER_AT_INPUT as WINNER_AT_INPUT
from jaxlift._transforms import Parts as Parts
from jaxlift._transforms import deeplift as deeplift
from jaxlift._transforms import deeplift_shap as deeplift_shap
from jaxlift._transforms import intermediate as intermediate
from jaxlift._transforms import multipliers as multipliers
from jaxlift._transforms import parts as parts
from jaxlift._transforms import pre_activation as pre_activation
from jaxlift._transforms import vjp as vjp
from jaxlift.methods import integrated_gradients as integrated_gradients

__version__ = "0.1.0"
