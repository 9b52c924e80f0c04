"""The names of an operator engineer in one place: the compute language, both faces of schedules, and building a kernel.

    from tilewright import te

    a, b, k = te.placeholder((64, 64), name="A"), te.placeholder((64, 64), name="B"), te.reduce_axis(64, "k")
    c = te.compute((64, 64), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]), name="C")
    s = te.create_schedule(c.op)
    s[c].vectorize(s[c].split(c.op.axis[1], 16)[1])
    multiply = te.build(s, args=[a, b, c])
"""
from tilewright.function import Function, build
from tilewright.loop.externs import extern_function
from tilewright.loop.ir import maximum, minimum
from tilewright.loop.tensor_intrinsics import tensor_intrinsic
from tilewright.tensor.compute import (
    ReduceAxis,
    Tensor,
    argmax,
    argmin,
    ceil,
    compute,
    const_table,
    create_program,
    erf,
    exp,
    floor,
    if_then_else,
    log,
    max,
    min,
    placeholder,
    prod,
    reduce_axis,
    reducer,
    select,
    sigmoid,
    sqrt,
    sum,
    tanh,
)
from tilewright.tensor.extern import call, extern
from tilewright.tensor.rules.dispatch import schedule_program
from tilewright.tensor.scan import scan
from tilewright.tensor.schedule.schedule import Schedule, replay
from tilewright.tensor.schedule.state import ScheduleError
from tilewright.tensor.schedule.trace import Trace
from tilewright.tensor.script import kernel
from tilewright.tensor.stage import Axis, Stage, ThreadAxis, thread_axis
from tilewright.tensor.stages import StageSchedule, create_schedule

__all__ = [
    "Axis", "Function", "ReduceAxis", "Schedule", "ScheduleError", "Stage", "StageSchedule", "Tensor", "ThreadAxis", "Trace",
    "argmax", "argmin", "build", "call", "ceil", "compute", "const_table", "create_program", "create_schedule", "erf", "exp",
    "extern", "extern_function", "floor", "if_then_else", "kernel", "log", "max", "maximum", "min", "minimum", "placeholder",
    "prod", "reduce_axis", "reducer", "replay", "scan", "schedule_program",
    "select", "sigmoid", "sqrt", "sum", "tanh", "tensor_intrinsic",
    "thread_axis"]
