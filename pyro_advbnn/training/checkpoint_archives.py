"""The archive that torch.save writes, looked through before torch loads it: nothing in it may cost or reach too much.

torch.load with weights_only runs no code, but it believes the sizes that a file states: records that inflate a
thousandfold, tensors larger than their record (whose surplus is read from whatever memory follows), a tensor of one
number that claims to be a billion. All of these are refused here.
"""
import io
import math
import pickle
import pickletools
import zipfile
from pathlib import PurePosixPath

PICKLE_LIMIT = 2**26                                     # bytes of structure; that of a large network has 2**16
_OPCODES = {"PROTO", "STOP", "MARK", "POP", "POP_MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
            "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
            "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINGET", "LONG_BINGET", "BINPUT",
            "LONG_BINPUT", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
_ITEM_SIZES = {"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
               "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
               "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16}


def check(file, size, *, sums=True):
    """Raises ValueError, or zipfile.BadZipFile, unless the open file of `size` bytes is an archive of plain tensors.

    It holds nothing but dicts, lists, plain values and dense tensors, each in a record of its own size, uncompressed.
    sums: whether each record must have the CRC-32 that it was written with, too; torch itself checks none.
    """
    with zipfile.ZipFile(file) as archive:
        if archive.comment:                              # in which another reader may find another archive
            raise ValueError("it has a comment")
        records = archive.infolist()
        _check_records(records, size)
        if sums and archive.testzip() is not None:
            raise zipfile.BadZipFile("a record is damaged")
        sizes = {record.filename: record.file_size for record in records}
        structure, = (name for name in sizes if PurePosixPath(name).name == "data.pkl")
        if sizes[structure] > PICKLE_LIMIT:
            raise ValueError("its structure is too large")
        content = archive.read(structure)
    home = str(PurePosixPath(structure).parent)
    _check_opcodes(content)
    _Structure(io.BytesIO(content), {name.removeprefix(f"{home}/data/"): size for name, size in sizes.items()}).load()


def _check_records(records, size):
    names = {record.filename for record in records}
    if len(names) < len(records) or len({name.partition("/")[0] for name in names}) > 1:
        raise ValueError("its records are not those of one archive")
    if any(".." in name.split("/") or name.startswith("/") or "\\" in name for name in names):
        raise ValueError("the name of a record leads out of the archive")
    if any(record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size for record in records):
        raise ValueError("a record is compressed")
    if any(record.external_attr for record in records):  # torch takes a record that is marked as a folder for an empty one
        raise ValueError("a record is marked as something other than data")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records are larger than the file")


def _check_opcodes(content):
    """Only what torch.save writes may follow; an absurd memo index would make the unpickler reserve that much memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise ValueError(f"its structure uses {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > len(content):
            raise ValueError("its structure is damaged")


class _Structure(pickle.Unpickler):
    """Reads the structure of a checkpoint, with a number of elements in place of every storage, and calls nothing of it."""

    def __init__(self, file, sizes):
        super().__init__(file)
        self._sizes = sizes

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _check_extent
        if module == "torch" and name in _ITEM_SIZES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(numel, int) or self._sizes[key] != numel * _ITEM_SIZES[storage]:
            raise pickle.UnpicklingError("a tensor has not the size of its record")
        return numel


class _Mapping(dict):
    """Stands for an OrderedDict; the attributes that a state dict has beside its items are left out."""

    def __setstate__(self, state):
        pass


def _check_extent(numel, offset, size, stride, requires_grad, hooks, *_):
    """A dense tensor within its storage of `numel` elements; not one element that is repeated a billion times."""
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor has a shape that is none")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > numel or (math.prod(size) and last >= numel):
        raise pickle.UnpicklingError("a tensor is larger than its record")
