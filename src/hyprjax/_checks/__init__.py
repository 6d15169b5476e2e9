"""What refuses wrong arguments and wrong programs, and what reports on right ones.

Nothing here takes part in the algorithm:

    arguments   the arguments of transforms
    layer       those of `unroll` and `step`: a layer and its cell
    axis        a jaxpr followed along one axis of its operands: an abstract interpretation
    axis_rules  what each primitive of JAX makes of the axis
    time        what a program does along time, by `axis`
    model       `hyprjax.check`: what is run and measured
    report      what it reports and advises
    cell        `hyprjax.check_cell`
"""

from hyprjax._checks import axis_rules as axis_rules
