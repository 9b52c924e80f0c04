"""The generated text of a saved library. In: a descriptor. Out: its C source, its weights' assembler stub, its C header."""
from __future__ import annotations

import json
import re

from tilewright.core.errors import UserError
from tilewright.runtime import native
from tilewright.runtime.descriptor import Descriptor, TensorSpec

_DECLARATIONS = """\
/* A handle, or NULL: {p}_error says why. Checks first that this CPU can run the model. */
tw_instance *{p}_open(void);
/* Waits for running calls and frees the handle. */
void {p}_close(tw_instance *model);
/* One run: inputs[i] and outputs[i] point to the elements in the order and shape of {p}_input(i), {p}_output(i).
 * Returns TW_OK or an error code. Several threads may run one handle at once. */
int32_t {p}_run(tw_instance *model, const void *const *inputs, void *const *outputs);
/* As {p}_run for models with symbolic dimensions: shapes[i] is the shape of input i; an output of symbolic shape comes
 * in results[i], and its data is freed with {p}_release. */
int32_t {p}_run_shapes(tw_instance *model, const void *const *inputs, const int64_t *const *shapes,
                       void *const *outputs, tw_result *results);
void {p}_release(void *data);
/* This thread's last failure. */
const char *{p}_error(void);
/* Threads of each run: at least 1. By default TILEWRIGHT_THREADS, or all CPUs that the process may use. */
int32_t {p}_set_threads(tw_instance *model, int32_t threads);
int32_t {p}_input_count(void);
int32_t {p}_output_count(void);
const tw_tensor_info *{p}_input(int32_t index);
const tw_tensor_info *{p}_output(int32_t index);
/* What the compiler recorded, as JSON. */
const char *{p}_metadata(void);
"""

_DEFINITIONS = """\
#define PUBLIC __attribute__((visibility("default")))
PUBLIC tw_instance *{p}_open(void) {{ return tw_open(&tw_saved_model, 0); }}
PUBLIC void {p}_close(tw_instance *model) {{ tw_destroy(model); }}
PUBLIC int32_t {p}_run(tw_instance *model, const void *const *inputs, void *const *outputs) {{
  return tw_run(model, inputs, NULL, outputs, NULL);
}}
PUBLIC int32_t {p}_run_shapes(tw_instance *model, const void *const *inputs, const int64_t *const *shapes,
                              void *const *outputs, tw_result *results) {{
  return tw_run(model, inputs, shapes, outputs, results);
}}
PUBLIC void {p}_release(void *data) {{ tw_release(data); }}
PUBLIC const char *{p}_error(void) {{ return tw_error(); }}
PUBLIC int32_t {p}_set_threads(tw_instance *model, int32_t threads) {{ return tw_set_threads(model, threads); }}
PUBLIC int32_t {p}_input_count(void) {{ return tw_saved_model.input_count; }}
PUBLIC int32_t {p}_output_count(void) {{ return tw_saved_model.output_count; }}
PUBLIC const tw_tensor_info *{p}_input(int32_t index) {{
  return index >= 0 && index < tw_saved_model.input_count ? &tw_saved_model.inputs[index] : NULL;
}}
PUBLIC const tw_tensor_info *{p}_output(int32_t index) {{
  return index >= 0 && index < tw_saved_model.output_count ? &tw_saved_model.outputs[index] : NULL;
}}
PUBLIC const char *{p}_metadata(void) {{ return tw_saved_model.metadata; }}
"""


def symbol_prefix(stem: str) -> str:
    """What the public functions' names begin with: the file's name as a C identifier.

    Raises UserError "save-name" for a name that leaves nothing, or that is the runtime's own.
    """
    prefix = re.sub(r"[^A-Za-z0-9_]", "_", stem)
    if not re.search(r"[A-Za-z0-9]", prefix) or prefix in ("tw", "tilewright"):
        raise UserError("save-name", f"{stem!r} cannot begin the names of C functions", where=stem,
                        hint="choose a file name with letters, such as net.so")
    return "m" + prefix if prefix[0].isdigit() else prefix


def version_script(prefix: str) -> str:
    """Only the model's own functions are seen: two models in one program never meet each other's symbols."""
    return f"{{ global: {prefix}_*; tilewright_runtime; local: *; }};\n"


def weights_stub(path: str, name: str = "weights") -> str:
    """Assembler that places a file's bytes at tw_`name` in a read-only section of their own, on a page boundary."""
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return (f'.section .tw_{name},"a"\n.balign 4096\n.globl tw_{name}\n.hidden tw_{name}\ntw_{name}:\n'
            f'.incbin "{quoted}"\n.balign 64\n.section .note.GNU-stack,"",%progbits\n')


def c_source(descriptor: Descriptor, prefix: str, consts_bytes: int) -> str:
    """The descriptor as constants, and the public functions."""
    kernels = ", ".join([_text(k) for k in descriptor.kernels] or ["NULL"])
    return "\n".join([
        "#include <stddef.h>", '#include "runtime.h"', "",
        "extern const uint8_t tw_weights[] __attribute__((visibility(\"hidden\")));",
        *(['extern const uint8_t tw_image[] __attribute__((visibility("hidden")));'] if descriptor.device else []),
        "extern int32_t tw_main(tw_ctx *ctx, void *const *in, void *const *out);",
        *_symbols(descriptor), *_infos("inputs", descriptor.inputs), *_infos("outputs", descriptor.outputs),
        f"static const char *const kernels[] = {{{kernels}}};",
        "const tw_model tw_saved_model = {",
        f"  .abi_version = {native.ABI_VERSION},",
        f"  .input_count = {len(descriptor.inputs)}, .output_count = {len(descriptor.outputs)},",
        f"  .kernel_count = {len(descriptor.kernels)}, .name = {_text(descriptor.name)},",
        "  .inputs = inputs, .outputs = outputs, .kernels = kernels,",
        f"  .arena_bytes = {descriptor.arena_bytes}LL, .consts = tw_weights, .consts_bytes = {consts_bytes}LL,",
        f"  .cpu_features = {descriptor.feature_mask()}ULL, .entry = tw_main,",
        f"  .metadata = {_text(json.dumps(dict(descriptor.metadata)))},",
        f"  .grown_count = {descriptor.grown_count}, .host_count = 0, .threads = {descriptor.threads},",
        f"  .symbol_count = {len(descriptor.symbols)}, .symbols = symbols,",
        *([f"  .device = {_text(descriptor.device)}, .image = tw_image, .image_bytes = {len(descriptor.image)}LL,"]
          if descriptor.device else []),
        "};", "", _DEFINITIONS.format(p=prefix)])


def c_header(descriptor: Descriptor, prefix: str) -> str:
    """The header that users of the library include; it needs no other file of Tilewright."""
    shared = (native.NATIVE_FOLDER / "tilewright.h").read_text()
    guard = f"TILEWRIGHT_MODEL_{prefix.upper()}_H"
    lines = [f"/* {_comment(descriptor.name)}: compiled by Tilewright. Link with the library beside this file.", " *"]
    for kind, specs in (("input", descriptor.inputs), ("output", descriptor.outputs)):
        lines += [f" * {kind} {i}: {_comment(spec.name)} {spec}" for i, spec in enumerate(specs)]
    if descriptor.cpu_features:
        lines += [" *", f" * needs a CPU with {' '.join(descriptor.cpu_features)}"]
    return "\n".join([*lines, " */", f"#ifndef {guard}", f"#define {guard}", "", "#ifdef __cplusplus", 'extern "C" {',
                      "#endif", "", shared, _DECLARATIONS.format(p=prefix), "#ifdef __cplusplus", "}", "#endif", "",
                      "#endif", ""])


def _symbols(descriptor: Descriptor) -> list[str]:
    rows = [f"{{{_text(s.name)}, {s.least}LL, {-1 if s.most is None else s.most}LL, {s.multiple}LL}}"
            for s in descriptor.symbols]
    return [f"static const tw_symbol symbols[] = {{{', '.join(rows) or '{0}'}}};"]


def _infos(which: str, specs: tuple[TensorSpec, ...]) -> list[str]:
    lines = [f"static const int64_t {which}_{i}[] = {{{', '.join(map(str, spec.shape)) or '0'}}};"
             for i, spec in enumerate(specs)]
    lines += [f"static const int32_t {which}_{i}_symbols[] = {{{', '.join(map(str, spec.symbols))}}};"
              for i, spec in enumerate(specs) if spec.symbols]
    rows = [f"{{{_text(spec.name)}, {which}_{i}, {native.DTYPE_CODES[spec.dtype.name]}, {len(spec.shape)}, "
            f"{f'{which}_{i}_symbols' if spec.symbols else 'NULL'}}}" for i, spec in enumerate(specs)]
    return [*lines, f"static const tw_tensor_info {which}[] = {{{', '.join(rows) or '{0}'}}};"]


def _text(value: str) -> str:
    """A C string literal of the UTF-8 bytes; octal escapes have a fixed length and cannot swallow what follows."""
    safe = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in value.encode())
    return f'"{safe}"'


def _comment(text: str) -> str:
    """Text that cannot end the comment it stands in."""
    return text.replace("*/", "* /").replace("\n", " ")
