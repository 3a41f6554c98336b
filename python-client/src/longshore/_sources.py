"""Where the bytes of a checkpoint come from: memory of this process, arrays, tensors on the host or on a GPU.

A source is a sequence of bytes: the elements of one tensor in row-major order, little-endian, or a file. Any part of it
can be copied to any address; what is not contiguous is gathered piece by piece, straight into place where alignment
allows, without a full temporary copy.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from longshore import _boxes
from longshore._errors import FailedPrecondition

if TYPE_CHECKING:
    from longshore._device_copies import DeviceCopies


#: Distance of rows that every card can copy.
_PITCH_MAX = (1 << 31) - 1
_ROW_BYTES_MIN = 64


class HostSource(Protocol):
    """Bytes that this process can read."""

    nbytes: int

    def copy(self, start: int, length: int, address: int) -> None:
        """Copies some of them. Called by several threads at once, for different parts; lets others run meanwhile."""


class DeviceSource(Protocol):
    """Bytes on a GPU."""

    nbytes: int
    #: As this process counts its GPUs.
    device: int

    def enqueue(self, copies: DeviceCopies, start: int, length: int, address: int) -> None:
        """Asks the GPU to copy some of them; `copies` tells when that is done."""


Source = HostSource | DeviceSource


class BytesSource:
    """A header, or a file that is in memory."""

    def __init__(self, content: bytes | bytearray | memoryview) -> None:
        view = memoryview(content).cast("B") if memoryview(content).nbytes else memoryview(b"")
        # ctypes takes the address of read-only memory only from bytes; files are small beside tensors.
        self._content = content if isinstance(content, bytes) else bytes(view)
        self._pointer = ctypes.cast(ctypes.c_char_p(self._content), ctypes.c_void_p).value or 0
        self.nbytes = len(self._content)

    def copy(self, start: int, length: int, address: int) -> None:
        ctypes.memmove(address, self._pointer + start, length)


class FileSource:
    """A file of this machine, read when it is copied. It must not change meanwhile."""

    def __init__(self, path: str, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes

    def copy(self, start: int, length: int, address: int) -> None:
        target = memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")
        with open(self.path, "rb", buffering=0) as file:
            file.seek(start)
            while target:
                count = file.readinto(target)
                if not count:
                    raise FailedPrecondition(f"the file {self.path} became shorter while it was saved")
                target = target[count:]


class _Strided:
    """What numpy arrays and torch tensors have in common when they are gathered."""

    def __init__(self, shape: tuple[int, ...], item_bytes: int) -> None:
        self._shape = shape
        self._item_bytes = item_bytes
        self.nbytes = prod(shape) * item_bytes

    def _parts(self, start: int, length: int) -> Iterator[tuple[_boxes.Box, int, int]]:
        """Boxes of elements, with the bytes to leave out at their beginning and to take from there."""
        item, end = self._item_bytes, start + length
        while start < end:
            element, skipped = divmod(start, item)
            if skipped or end - start < item:
                # One element of which only some bytes belong to this part.
                taken = min(item - skipped, end - start)
                for box in _boxes.flat_boxes(self._shape, element, 1):
                    yield box, skipped, taken
            else:
                taken = (end - start) // item * item
                for box in _boxes.flat_boxes(self._shape, element, taken // item):
                    yield box, 0, box.size * item
            start += taken


class ArraySource(_Strided):
    """A numpy array."""

    def __init__(self, array: Any) -> None:
        numpy = sys.modules["numpy"]
        little = array if array.dtype.byteorder != ">" and not _is_swapped(array) else None
        #: Elements as numbers of their width, because numpy cannot handle all dtypes that it carries.
        self._array = (array if little is not None else array.astype(array.dtype.newbyteorder("<"))).view(
            f"u{array.dtype.itemsize}" if array.dtype.itemsize <= 8 else array.dtype
        )
        self._numpy = numpy
        self._pointer = self._array.ctypes.data if self._array.flags.c_contiguous else None
        super().__init__(tuple(array.shape), array.dtype.itemsize)

    def copy(self, start: int, length: int, address: int) -> None:
        if self._pointer is not None:
            ctypes.memmove(address, self._pointer + start, length)
            return
        for box, skipped, taken in self._parts(start, length):
            piece = self._array[box.slices()]
            if skipped == 0 and taken == piece.nbytes and address % self._item_bytes == 0:
                memory = (ctypes.c_ubyte * taken).from_address(address)
                target = self._numpy.frombuffer(memory, dtype=self._array.dtype).reshape(box.shape)
                self._numpy.copyto(target, piece)
            else:
                flat = self._numpy.ascontiguousarray(piece)
                ctypes.memmove(address, flat.ctypes.data + skipped, taken)
            address += taken


def _is_swapped(array: Any) -> bool:
    return array.dtype.byteorder == "=" and sys.byteorder != "little"


class TensorSource(_Strided):
    """A torch tensor that is no GPU's; of other devices it is copied through the host."""

    def __init__(self, tensor: Any) -> None:
        self._torch = sys.modules["torch"]
        self._tensor = as_bits(self._torch, tensor)
        is_flat = self._tensor.device.type == "cpu" and self._tensor.is_contiguous()
        self._pointer = self._tensor.data_ptr() if is_flat else None
        super().__init__(tuple(self._tensor.shape), self._tensor.element_size())

    def copy(self, start: int, length: int, address: int) -> None:
        if self._pointer is not None:
            ctypes.memmove(address, self._pointer + start, length)
            return
        for box, skipped, taken in self._parts(start, length):
            piece = self._tensor[box.slices()]
            if skipped == 0 and taken == box.size * self._item_bytes and address % self._item_bytes == 0:
                memory = (ctypes.c_ubyte * taken).from_address(address)
                target = self._torch.frombuffer(memory, dtype=self._tensor.dtype).view(box.shape)
                target.copy_(piece)
            else:
                flat = piece.cpu().contiguous()
                ctypes.memmove(address, flat.data_ptr() + skipped, taken)
            address += taken


class CudaSource(_Strided):
    """A torch tensor on a GPU."""

    def __init__(self, tensor: Any, device: int) -> None:
        self._tensor = as_bits(sys.modules["torch"], tensor)
        self._pointer = self._tensor.data_ptr() if self._tensor.is_contiguous() else None
        self.device = device
        super().__init__(tuple(self._tensor.shape), self._tensor.element_size())

    def enqueue(self, copies: DeviceCopies, start: int, length: int, address: int) -> None:
        if self._pointer is not None:
            copies.copy(address, self._pointer + start, length)
            return
        for box, skipped, taken in self._parts(start, length):
            piece = self._tensor[box.slices()]
            rows = _rows(piece)
            if rows is not None and skipped == 0 and taken == box.size * self._item_bytes:
                width, height, pitch = rows
                copies.copy_rows(address, piece.data_ptr(), width, height, pitch)
            else:
                copies.copy(address, copies.gather(piece).data_ptr() + skipped, taken)
            address += taken


def _rows(piece: Any) -> tuple[int, int, int] | None:
    """Bytes of a row, number of rows and distance between them, when a tensor consists of equal rows."""
    item = piece.element_size()
    extents = [(size, stride) for size, stride in zip(piece.shape, piece.stride(), strict=True) if size != 1]
    width = 1
    while extents and extents[-1][1] == width:
        width *= extents.pop()[0]
    if not extents:
        return width * item, 1, width * item
    height, pitch = extents.pop()
    while extents and extents[-1][1] == height * pitch:
        height *= extents.pop()[0]
    is_plain = not extents and width <= pitch and pitch * item <= _PITCH_MAX
    # Rows of a few bytes are slower than to gather them on the card.
    return (width * item, height, pitch * item) if is_plain and width * item >= _ROW_BYTES_MIN else None


def as_bits(torch: Any, tensor: Any) -> Any:
    """The same memory with elements that are plain numbers, which every operation of torch takes."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.view(bits[plain.element_size()])
