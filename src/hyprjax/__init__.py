"""hyprjax: recurrent spiking neural networks trained with HYPR, forward gradients at constant memory."""

from hyprjax import surrogate as surrogate
from hyprjax import weights as weights
from hyprjax._bptt import bptt as bptt
from hyprjax._calibrate import calibrate as calibrate
from hyprjax._cell import Cell as Cell
from hyprjax._cell import init_layer as init_layer
from hyprjax._checks.cell import check_cell as check_cell
from hyprjax._checks.model import check as check
from hyprjax._delay import delay as delay
from hyprjax._hypr import Learner as Learner
from hyprjax._hypr import hypr as hypr
from hyprjax._hypr import hypr_grad as hypr_grad
from hyprjax._hypr import hypr_stream as hypr_stream
from hyprjax._hypr import hypr_value_and_grad as hypr_value_and_grad
from hyprjax._patches import patches as patches
from hyprjax._project import project as project
from hyprjax._segment import Carry as Carry
from hyprjax._segment import Traces as Traces
from hyprjax._sharding import shardings as shardings
from hyprjax._stream import Stream as Stream
from hyprjax._stream import stream as stream
from hyprjax._stream import unroll as unroll
from hyprjax._wiring import scan as scan
from hyprjax._wiring import step as step
from hyprjax.cells import adex as adex
from hyprjax.cells import alif as alif
from hyprjax.cells import brf as brf
from hyprjax.cells import coba_lif as coba_lif
from hyprjax.cells import cuba_lif as cuba_lif
from hyprjax.cells import dh_lif as dh_lif
from hyprjax.cells import ef_adlif as ef_adlif
from hyprjax.cells import filtered as filtered
from hyprjax.cells import gru as gru
from hyprjax.cells import izhikevich as izhikevich
from hyprjax.cells import leaky_integrator as leaky_integrator
from hyprjax.cells import lif as lif
from hyprjax.cells import lstm as lstm
from hyprjax.cells import refractory as refractory
from hyprjax.cells import rf as rf
from hyprjax.cells import se_adlif as se_adlif
from hyprjax.cells import two_compartment as two_compartment
from hyprjax.cells import with_state as with_state

__version__ = "0.2.0"
