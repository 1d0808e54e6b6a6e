"""From a gradient to a step of theta: rules, schedules, clipping."""
