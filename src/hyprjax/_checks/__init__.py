"""What refuses wrong arguments and wrong programs, and what reports on right ones.

Nothing here takes part in the algorithm:

    arguments   the arguments of public functions
    axis        a jaxpr followed along one axis of its operands: an abstract interpretation
    time        what a program does along time, by `axis`
    model       `hyprjax.check`
    cell        `hyprjax.check_cell`
"""
