/* The two things that are done with every plain frame, in C: taking it apart and putting it together; and the
   same for scalar calls, whose MessagePack is taken apart and put together in the same step.

   Everything here exists in Python too, in frames.py and scalars.py, which use this module where it has been
   compiled.  It sees bytes only: no socket, no clock.  A plain frame has no annotations and no correlation id;
   its header is

       'PYRO' 502 | type | serializer | flags (2) | sequence (2) | payload length (4) | 22 zero bytes | 0x4dc5
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <string.h>

#define HEADER 40
#define COMPRESSED 2
#define INVOKE 4
#define BESIDE_MAX 4096

static const unsigned char START[6] = {'P', 'Y', 'R', 'O', 502 >> 8, 502 & 0xff};
static const unsigned char TAIL[24] = {[22] = 0x4d, [23] = 0xc5};

typedef struct {
    PyObject_HEAD
    PyObject *type, *serializer_id, *flags, *sequence, *payload, *annotations, *correlation;
} Frame;

/* What frames.py says with configure(): the class to make, and what a plain frame has instead of an answer. */
static PyTypeObject *frame_class = NULL;
static PyObject *no_annotations = NULL, *no_correlation = NULL;
static PyObject *ours = NULL; /* the name of our annotation */

static PyMemberDef frame_members[] = {
    {"type", T_OBJECT_EX, offsetof(Frame, type), 0, NULL},
    {"serializer_id", T_OBJECT_EX, offsetof(Frame, serializer_id), 0, NULL},
    {"flags", T_OBJECT_EX, offsetof(Frame, flags), 0, NULL},
    {"sequence", T_OBJECT_EX, offsetof(Frame, sequence), 0, NULL},
    {"payload", T_OBJECT_EX, offsetof(Frame, payload), 0, NULL},
    {"annotations", T_OBJECT_EX, offsetof(Frame, annotations), 0, NULL},
    {"correlation", T_OBJECT_EX, offsetof(Frame, correlation), 0, NULL},
    {NULL}};

static int frame_init(Frame *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"type", "serializer_id", "flags", "sequence", "payload", NULL};
    PyObject *type, *serializer, *flags, *sequence, *payload;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO", names, &type, &serializer, &flags, &sequence, &payload))
        return -1;
    if (no_annotations == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the kernel has not been configured");
        return -1;
    }
    Py_XSETREF(self->type, Py_NewRef(type));
    Py_XSETREF(self->serializer_id, Py_NewRef(serializer));
    Py_XSETREF(self->flags, Py_NewRef(flags));
    Py_XSETREF(self->sequence, Py_NewRef(sequence));
    Py_XSETREF(self->payload, Py_NewRef(payload));
    Py_XSETREF(self->annotations, Py_NewRef(no_annotations));
    Py_XSETREF(self->correlation, Py_NewRef(no_correlation));
    return 0;
}

static void frame_dealloc(Frame *self) {
    Py_XDECREF(self->type);
    Py_XDECREF(self->serializer_id);
    Py_XDECREF(self->flags);
    Py_XDECREF(self->sequence);
    Py_XDECREF(self->payload);
    Py_XDECREF(self->annotations);
    Py_XDECREF(self->correlation);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject FrameType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "objserver.wire._kernel.Frame",
    .tp_basicsize = sizeof(Frame),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)frame_init,
    .tp_dealloc = (destructor)frame_dealloc,
    .tp_members = frame_members,
};

static PyObject *configure(PyObject *module, PyObject *args) {
    PyObject *cls, *annotations, *correlation;
    if (!PyArg_ParseTuple(args, "O!OO", &PyType_Type, &cls, &annotations, &correlation))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)cls, &FrameType)) {
        PyErr_SetString(PyExc_TypeError, "the class of frames derives from the kernel's");
        return NULL;
    }
    Py_XSETREF(frame_class, (PyTypeObject *)Py_NewRef(cls));
    Py_XSETREF(no_annotations, Py_NewRef(annotations));
    Py_XSETREF(no_correlation, Py_NewRef(correlation));
    Py_RETURN_NONE;
}

/* A frame that is whole and plain but for `beside` bytes of annotations; `size` is the length of its payload. */
static PyObject *make_frame(const unsigned char *at, size_t beside, size_t size) {
    Frame *frame = (Frame *)frame_class->tp_alloc(frame_class, 0);
    if (frame == NULL)
        return NULL;
    frame->type = PyLong_FromLong(at[6]);
    frame->serializer_id = PyLong_FromLong(at[7]);
    frame->flags = PyLong_FromLong(at[8] << 8 | at[9]);
    frame->sequence = PyLong_FromLong(at[10] << 8 | at[11]);
    frame->payload = PyBytes_FromStringAndSize((const char *)at + HEADER + beside, (Py_ssize_t)size);
    frame->annotations = Py_NewRef(no_annotations);
    frame->correlation = Py_NewRef(no_correlation);
    if (!frame->type || !frame->serializer_id || !frame->flags || !frame->sequence || !frame->payload) {
        Py_DECREF(frame);
        return NULL;
    }
    return (PyObject *)frame;
}

/* plain_frames(data, size_max) -> (frames, end): the whole plain frames that `data` begins with, and where they
   end.  What comes after is for the parser: a frame that is not plain or not whole, or no frame at all. */
static PyObject *plain_frames(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || frame_class == NULL) {
        PyErr_SetString(PyExc_TypeError, "plain_frames takes data and size_max, after configure");
        return NULL;
    }
    size_t size_max = PyLong_AsSize_t(args[1]);
    if (size_max == (size_t)-1 && PyErr_Occurred())
        return NULL;
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    const unsigned char *data = buffer.buf;
    size_t length = (size_t)buffer.len, end = 0;
    PyObject *frames = PyList_New(0);
    while (frames != NULL && length - end >= HEADER) {
        const unsigned char *at = data + end;
        if (memcmp(at, START, sizeof START) || memcmp(at + 16, TAIL, sizeof TAIL) || at[9] & COMPRESSED)
            break;
        size_t size = (size_t)at[12] << 24 | (size_t)at[13] << 16 | (size_t)at[14] << 8 | at[15];
        if (size > length - end - HEADER || HEADER + size > size_max)
            break;
        PyObject *frame = make_frame(at, 0, size);
        if (frame == NULL || PyList_Append(frames, frame) < 0)
            Py_CLEAR(frames);
        Py_XDECREF(frame);
        end += HEADER + size;
    }
    PyBuffer_Release(&buffer);
    if (frames == NULL)
        return NULL;
    return Py_BuildValue("Nn", frames, (Py_ssize_t)end);
}

/* plain_request(data, size_max) -> the frame, if `data` is exactly one plain request without flags, or None.
   It may have our own annotation, small, and no other. */
static PyObject *plain_request(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || frame_class == NULL || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "plain_request takes bytes and size_max, after configure");
        return NULL;
    }
    size_t size_max = PyLong_AsSize_t(args[1]);
    if (size_max == (size_t)-1 && PyErr_Occurred())
        return NULL;
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    size_t length = (size_t)PyBytes_GET_SIZE(args[0]);
    if (length < HEADER || length > size_max || memcmp(at, START, sizeof START) || at[6] != INVOKE || at[8] ||
        at[9] || memcmp(at + 20, TAIL + 4, sizeof TAIL - 4))
        Py_RETURN_NONE;
    size_t size = (size_t)at[12] << 24 | (size_t)at[13] << 16 | (size_t)at[14] << 8 | at[15];
    size_t beside = (size_t)at[16] << 24 | (size_t)at[17] << 16 | (size_t)at[18] << 8 | at[19];
    if (size > length - HEADER || beside != length - HEADER - size)
        Py_RETURN_NONE;
    if (beside == 0)
        return make_frame(at, 0, size);
    const unsigned char *chunk = at + HEADER;
    if (beside < 8 || beside > BESIDE_MAX || memcmp(chunk, "OBJS", 4) ||
        ((size_t)chunk[4] << 24 | (size_t)chunk[5] << 16 | (size_t)chunk[6] << 8 | chunk[7]) != beside - 8)
        Py_RETURN_NONE;
    PyObject *frame = make_frame(at, beside, size);
    PyObject *value = PyBytes_FromStringAndSize((const char *)chunk + 8, (Py_ssize_t)(beside - 8));
    PyObject *annotations = PyDict_New();
    if (!frame || !value || !annotations || PyDict_SetItem(annotations, ours, value) < 0) {
        Py_XDECREF(frame);
        Py_XDECREF(value);
        Py_XDECREF(annotations);
        return NULL;
    }
    Py_DECREF(value);
    Py_SETREF(((Frame *)frame)->annotations, annotations);
    return frame;
}

/* plain_reply(data, start, sequence) -> the payload, if `data` is exactly the plain frame that begins with
   `start` and has that number, or None. */
static PyObject *plain_reply(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[1]) || PyBytes_GET_SIZE(args[1]) != 10) {
        PyErr_SetString(PyExc_TypeError, "plain_reply takes bytes, the first ten of a frame and a sequence number");
        return NULL;
    }
    long sequence = PyLong_AsLong(args[2]);
    if (sequence == -1 && PyErr_Occurred())
        return NULL;
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    size_t length = (size_t)PyBytes_GET_SIZE(args[0]);
    if (length < HEADER || memcmp(at, PyBytes_AS_STRING(args[1]), 10) || (at[10] << 8 | at[11]) != sequence ||
        memcmp(at + 16, TAIL, sizeof TAIL))
        Py_RETURN_NONE;
    size_t size = (size_t)at[12] << 24 | (size_t)at[13] << 16 | (size_t)at[14] << 8 | at[15];
    if (size != length - HEADER)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)at + HEADER, (Py_ssize_t)size);
}

/* plain_frame(start, sequence, payload) -> its bytes; `start` are the first ten. */
static PyObject *plain_frame(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3 || !PyBytes_Check(args[0]) || PyBytes_GET_SIZE(args[0]) != 10) {
        PyErr_SetString(PyExc_TypeError, "plain_frame takes the first ten bytes, a sequence number and a payload");
        return NULL;
    }
    long sequence = PyLong_AsLong(args[1]);
    if (sequence == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer payload;
    if (PyObject_GetBuffer(args[2], &payload, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *frame = NULL;
    size_t size = (size_t)payload.len;
    if (sequence < 0 || sequence > 0xffff || size > 0xffffffff)
        PyErr_SetString(PyExc_OverflowError, "a sequence number has 16 bits, a length 32");
    else
        frame = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(HEADER + size));
    if (frame != NULL) {
        unsigned char *at = (unsigned char *)PyBytes_AS_STRING(frame);
        memcpy(at, PyBytes_AS_STRING(args[0]), 10);
        at[10] = (unsigned char)(sequence >> 8);
        at[11] = (unsigned char)sequence;
        at[12] = (unsigned char)(size >> 24);
        at[13] = (unsigned char)(size >> 16);
        at[14] = (unsigned char)(size >> 8);
        at[15] = (unsigned char)size;
        memcpy(at + 16, TAIL, sizeof TAIL);
        memcpy(at + HEADER, payload.buf, size);
    }
    PyBuffer_Release(&payload);
    return frame;
}

/* plain_call(value) -> value, if it is a list of two texts, a list and an empty dict: a call without keywords. */
static PyObject *plain_call(PyObject *module, PyObject *value) {
    if (PyList_CheckExact(value) && PyList_GET_SIZE(value) == 4 && PyUnicode_CheckExact(PyList_GET_ITEM(value, 0)) &&
        PyUnicode_CheckExact(PyList_GET_ITEM(value, 1)) && PyList_CheckExact(PyList_GET_ITEM(value, 2)) &&
        PyDict_CheckExact(PyList_GET_ITEM(value, 3)) && PyDict_GET_SIZE(PyList_GET_ITEM(value, 3)) == 0)
        return Py_NewRef(value);
    Py_RETURN_NONE;
}

/* -- scalar calls: see scalars.py --------------------------------------------------------------------- */

#define SMALL 256  /* bytes of a payload that is read or written here; longer texts are not scalars */
#define ARGUMENTS 15  /* what the shortest head of an array can count */

/* What is left to read; `at` never passes `end`. */
typedef struct {
    const unsigned char *at, *end;
} Rest;

static unsigned long long big_endian(const unsigned char *at, int width) {
    unsigned long long number = 0;
    while (width--)
        number = number << 8 | *at++;
    return number;
}

/* One scalar, or NULL: with an exception only if there is no memory, else it is something else. */
static PyObject *read_scalar(Rest *rest) {
    if (rest->at == rest->end)
        return NULL;
    size_t left = (size_t)(rest->end - rest->at) - 1;
    const unsigned char head = *rest->at, *data = rest->at + 1;
    size_t width = 0, length = 0;
    PyObject *value = NULL;
    if (head < 0x80)
        value = PyLong_FromLong(head);
    else if (head >= 0xe0)
        value = PyLong_FromLong((long)head - 256);
    else if (head == 0xc0)
        value = Py_NewRef(Py_None);
    else if (head == 0xc2 || head == 0xc3)
        value = PyBool_FromLong(head == 0xc3);
    else if (head >= 0xca && head <= 0xd3) {
        width = head < 0xcc ? (size_t)4 << (head - 0xca) : (size_t)1 << (head & 3);
        if (left < width)
            return NULL;
        const char *bytes = (const char *)data;
        unsigned long long number = big_endian(data, (int)width), sign = 1ULL << (width * 8 - 1);
        if (head < 0xcc)
            value = PyFloat_FromDouble(width == 4 ? PyFloat_Unpack4(bytes, 0) : PyFloat_Unpack8(bytes, 0));
        else if (head < 0xd0)
            value = PyLong_FromUnsignedLongLong(number);
        else
            value = PyLong_FromLongLong((long long)((number ^ sign) - sign));
    } else {
        if ((head & 0xe0) == 0xa0)
            length = head & 0x1f;
        else if ((head == 0xd9 || head == 0xc4) && left) {
            width = 1;
            length = *data;
        } else
            return NULL;
        if (left < width + length)
            return NULL;
        const char *text = (const char *)data + width;
        if (head == 0xc4)
            value = PyBytes_FromStringAndSize(text, (Py_ssize_t)length);
        else {
            value = PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, NULL);
            if (value == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
                PyErr_Clear(); /* who decodes it the long way says what is wrong */
        }
    }
    rest->at = data + width + length;
    return value;
}

static PyObject *read_text(Rest *rest) {
    PyObject *value = read_scalar(rest);
    if (value != NULL && !PyUnicode_CheckExact(value))
        Py_CLEAR(value);
    return value;
}

/* (object id, method, arguments, frame) of a payload that is a scalar call; NULL as read_scalar.  The frame is
   `frame`, or made of the header at `head`. */
static PyObject *read_call(const unsigned char *at, size_t size, const unsigned char *head, PyObject *frame) {
    Rest rest = {at, at + size};
    PyObject *object_id = NULL, *method = NULL, *args = NULL, *call = NULL;
    if (size < 5 || size > SMALL || *rest.at++ != 0x94)
        return NULL;
    if ((object_id = read_text(&rest)) == NULL || (method = read_text(&rest)) == NULL || rest.at == rest.end ||
        (*rest.at & 0xf0) != 0x90)
        goto done;
    Py_ssize_t count = *rest.at++ & 0x0f;
    if ((args = PyList_New(count)) == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *value = read_scalar(&rest);
        if (value == NULL)
            goto done;
        PyList_SET_ITEM(args, i, value);
    }
    if (rest.end - rest.at != 1 || *rest.at != 0x80)
        goto done;
    frame = frame != NULL ? Py_NewRef(frame) : make_frame(head, 0, 0);
    if (frame != NULL && (call = PyTuple_New(4)) != NULL) {
        PyTuple_SET_ITEM(call, 0, Py_NewRef(object_id));
        PyTuple_SET_ITEM(call, 1, Py_NewRef(method));
        PyTuple_SET_ITEM(call, 2, Py_NewRef(args));
        PyTuple_SET_ITEM(call, 3, Py_NewRef(frame));
    }
    Py_XDECREF(frame);
done:
    Py_XDECREF(object_id);
    Py_XDECREF(method);
    Py_XDECREF(args);
    return call;
}

/* scalar_call(data, start) -> (object id, method, arguments, frame), if `data` is exactly one plain frame that
   begins with `start` and calls with scalars, or None. */
static PyObject *scalar_call(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || frame_class == NULL || !PyBytes_Check(args[0]) || !PyBytes_Check(args[1]) ||
        PyBytes_GET_SIZE(args[1]) != 10) {
        PyErr_SetString(PyExc_TypeError, "scalar_call takes bytes and the first ten of a frame, after configure");
        return NULL;
    }
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    size_t length = (size_t)PyBytes_GET_SIZE(args[0]);
    if (length < HEADER || memcmp(at, PyBytes_AS_STRING(args[1]), 10) || memcmp(at + 16, TAIL, sizeof TAIL) ||
        big_endian(at + 12, 4) != length - HEADER)
        Py_RETURN_NONE;
    PyObject *call = read_call(at + HEADER, length - HEADER, at, NULL);
    if (call == NULL && !PyErr_Occurred())
        Py_RETURN_NONE;
    return call;
}

/* scalar_call_in(frame, start) -> as scalar_call, of a frame: if it begins with `start` and has nothing beside its
   payload. */
static PyObject *scalar_call_in(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || frame_class == NULL || !PyObject_TypeCheck(args[0], &FrameType) || !PyBytes_Check(args[1]) ||
        PyBytes_GET_SIZE(args[1]) != 10) {
        PyErr_SetString(PyExc_TypeError, "scalar_call_in takes a frame and the first ten bytes of one");
        return NULL;
    }
    Frame *frame = (Frame *)args[0];
    const unsigned char *start = (const unsigned char *)PyBytes_AS_STRING(args[1]);
    if (!frame->payload || !PyBytes_CheckExact(frame->payload) || frame->annotations != no_annotations ||
        frame->correlation != no_correlation || !frame->type || !frame->serializer_id || !frame->flags)
        Py_RETURN_NONE;
    long type = PyLong_AsLong(frame->type), serializer = PyLong_AsLong(frame->serializer_id);
    long flags = PyLong_AsLong(frame->flags);
    if (PyErr_Occurred())
        return NULL;
    if (type != start[6] || serializer != start[7] || flags != (start[8] << 8 | start[9]))
        Py_RETURN_NONE;
    PyObject *payload = Py_NewRef(frame->payload);
    PyObject *call = read_call((const unsigned char *)PyBytes_AS_STRING(payload), (size_t)PyBytes_GET_SIZE(payload),
                               NULL, (PyObject *)frame);
    Py_DECREF(payload);
    if (call == NULL && !PyErr_Occurred())
        Py_RETURN_NONE;
    return call;
}

/* scalar_in(payload) -> the scalar that it is, or Ellipsis. */
static PyObject *scalar_in(PyObject *module, PyObject *payload) {
    if (PyBytes_CheckExact(payload) && PyBytes_GET_SIZE(payload) <= SMALL) {
        const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(payload);
        Rest rest = {at, at + PyBytes_GET_SIZE(payload)};
        PyObject *value = read_scalar(&rest);
        if (value != NULL && rest.at == rest.end)
            return value;
        Py_XDECREF(value);
        if (PyErr_Occurred())
            return NULL;
    }
    return Py_NewRef(Py_Ellipsis);
}

/* scalar_value(data, start, sequence) -> the scalar, if `data` is exactly the plain frame that begins with `start`
   and has that number and one for a payload, or Ellipsis, which no scalar is. */
static PyObject *scalar_value(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[1]) || PyBytes_GET_SIZE(args[1]) != 10) {
        PyErr_SetString(PyExc_TypeError, "scalar_value takes bytes, the first ten of a frame and a sequence number");
        return NULL;
    }
    long sequence = PyLong_AsLong(args[2]);
    if (sequence == -1 && PyErr_Occurred())
        return NULL;
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    size_t length = (size_t)PyBytes_GET_SIZE(args[0]);
    if (length >= HEADER && length <= HEADER + SMALL && !memcmp(at, PyBytes_AS_STRING(args[1]), 10) &&
        (at[10] << 8 | at[11]) == sequence && !memcmp(at + 16, TAIL, sizeof TAIL) &&
        big_endian(at + 12, 4) == length - HEADER) {
        Rest rest = {at + HEADER, at + length};
        PyObject *value = read_scalar(&rest);
        if (value != NULL && rest.at == rest.end)
            return value;
        Py_XDECREF(value);
        if (PyErr_Occurred())
            return NULL;
    }
    return Py_NewRef(Py_Ellipsis);
}

/* A frame that is being written. */
typedef struct {
    size_t size; /* of its payload, so far */
    unsigned char bytes[HEADER + SMALL];
} Draft;

static int write_number(Draft *draft, unsigned char head, unsigned long long number, size_t width) {
    if (SMALL - draft->size < 1 + width)
        return 0;
    unsigned char *at = draft->bytes + HEADER + draft->size;
    *at = head;
    for (size_t i = width; i > 0; i--, number >>= 8)
        at[i] = (unsigned char)number;
    draft->size += 1 + width;
    return 1;
}

static int write_block(Draft *draft, unsigned char fixed, unsigned char head, const char *data, size_t length) {
    int fits = fixed && length < 32 ? write_number(draft, (unsigned char)(fixed | length), 0, 0)
                                    : length < 256 && write_number(draft, head, length, 1);
    if (!fits || SMALL - draft->size < length)
        return 0;
    memcpy(draft->bytes + HEADER + draft->size, data, length);
    draft->size += length;
    return 1;
}

static int write_int(Draft *draft, PyObject *value) {
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow)
        return 0;
    if (number >= 0) {
        if (number < 0x80)
            return write_number(draft, (unsigned char)number, 0, 0);
        int step = number < 0x100 ? 0 : number < 0x10000 ? 1 : number < 0x100000000 ? 2 : 3;
        return write_number(draft, (unsigned char)(0xcc + step), (unsigned long long)number, (size_t)1 << step);
    }
    if (number >= -32)
        return write_number(draft, (unsigned char)number, 0, 0);
    int step = number >= -0x80 ? 0 : number >= -0x8000 ? 1 : number >= -0x80000000LL ? 2 : 3;
    return write_number(draft, (unsigned char)(0xd0 + step), (unsigned long long)number, (size_t)1 << step);
}

/* 1, or 0 if it is no scalar, or one too many. */
static int write_scalar(Draft *draft, PyObject *value) {
    if (PyLong_CheckExact(value))
        return write_int(draft, value);
    if (PyUnicode_CheckExact(value)) {
        Py_ssize_t length;
        const char *text = PyUnicode_AsUTF8AndSize(value, &length);
        if (text == NULL)
            PyErr_Clear(); /* it holds half a character: who encodes it the long way says so */
        return text != NULL && write_block(draft, 0xa0, 0xd9, text, (size_t)length);
    }
    if (value == Py_None)
        return write_number(draft, 0xc0, 0, 0);
    if (PyBool_Check(value))
        return write_number(draft, value == Py_True ? 0xc3 : 0xc2, 0, 0);
    if (PyFloat_CheckExact(value)) {
        if (!write_number(draft, 0xcb, 0, 8))
            return 0;
        PyFloat_Pack8(PyFloat_AS_DOUBLE(value), (char *)draft->bytes + HEADER + draft->size - 8, 0);
        return 1;
    }
    if (PyBytes_CheckExact(value))
        return write_block(draft, 0, 0xc4, PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value));
    return 0;
}

static PyObject *finished(Draft *draft, const char *start, long sequence) {
    unsigned char *at = draft->bytes;
    memcpy(at, start, 10);
    at[10] = (unsigned char)(sequence >> 8);
    at[11] = (unsigned char)sequence;
    at[12] = at[13] = 0;
    at[14] = (unsigned char)(draft->size >> 8);
    at[15] = (unsigned char)draft->size;
    memcpy(at + 16, TAIL, sizeof TAIL);
    return PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)(HEADER + draft->size));
}

/* The first ten bytes of a frame, and -1 or its sequence number. */
static const char *begin(PyObject *const *args, long *sequence) {
    if (!PyBytes_Check(args[0]) || PyBytes_GET_SIZE(args[0]) != 10) {
        PyErr_SetString(PyExc_TypeError, "a frame begins with ten bytes");
        return NULL;
    }
    *sequence = PyLong_AsLong(args[1]);
    if (*sequence == -1 && PyErr_Occurred())
        return NULL;
    if (*sequence < 0 || *sequence > 0xffff) {
        PyErr_SetString(PyExc_OverflowError, "a sequence number has 16 bits");
        return NULL;
    }
    return PyBytes_AS_STRING(args[0]);
}

/* scalar_request(start, sequence, object id, method, arguments) -> the bytes of the frame that calls so, or None if
   these are not few scalars in a tuple or list. */
static PyObject *scalar_request(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    long sequence;
    Draft draft;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "scalar_request takes a start, a sequence number and a call");
        return NULL;
    }
    const char *start = begin(args, &sequence);
    if (start == NULL)
        return NULL;
    if (!(PyTuple_CheckExact(args[4]) || PyList_CheckExact(args[4])) || !PyUnicode_CheckExact(args[2]) ||
        !PyUnicode_CheckExact(args[3]))
        Py_RETURN_NONE;
    PyObject **items = PySequence_Fast_ITEMS(args[4]);
    Py_ssize_t count = PySequence_Fast_GET_SIZE(args[4]);
    draft.size = 0;
    int fits = count <= ARGUMENTS && write_number(&draft, 0x94, 0, 0) && write_scalar(&draft, args[2]) &&
               write_scalar(&draft, args[3]) && write_number(&draft, (unsigned char)(0x90 | count), 0, 0);
    for (Py_ssize_t i = 0; fits && i < count; i++)
        fits = write_scalar(&draft, items[i]); /* exact types: no code of anybody's runs here */
    if (!fits || !write_number(&draft, 0x80, 0, 0))
        Py_RETURN_NONE;
    return finished(&draft, start, sequence);
}

/* scalar_reply(start, sequence, value) -> the bytes of the frame that carries it, or None if it is no scalar. */
static PyObject *scalar_reply(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    long sequence;
    Draft draft;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "scalar_reply takes a start, a sequence number and a value");
        return NULL;
    }
    const char *start = begin(args, &sequence);
    if (start == NULL)
        return NULL;
    draft.size = 0;
    if (!write_scalar(&draft, args[2]))
        Py_RETURN_NONE;
    return finished(&draft, start, sequence);
}

static PyMethodDef functions[] = {
    {"scalar_call", (PyCFunction)(void (*)(void))scalar_call, METH_FASTCALL, NULL},
    {"scalar_call_in", (PyCFunction)(void (*)(void))scalar_call_in, METH_FASTCALL, NULL},
    {"scalar_in", scalar_in, METH_O, NULL},
    {"scalar_value", (PyCFunction)(void (*)(void))scalar_value, METH_FASTCALL, NULL},
    {"scalar_request", (PyCFunction)(void (*)(void))scalar_request, METH_FASTCALL, NULL},
    {"scalar_reply", (PyCFunction)(void (*)(void))scalar_reply, METH_FASTCALL, NULL},
    {"plain_call", plain_call, METH_O, NULL},
    {"configure", configure, METH_VARARGS, NULL},
    {"plain_request", (PyCFunction)(void (*)(void))plain_request, METH_FASTCALL, NULL},
    {"plain_reply", (PyCFunction)(void (*)(void))plain_reply, METH_FASTCALL, NULL},
    {"plain_frame", (PyCFunction)(void (*)(void))plain_frame, METH_FASTCALL, NULL},
    {"plain_frames", (PyCFunction)(void (*)(void))plain_frames, METH_FASTCALL, NULL},
    {NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "objserver.wire._kernel", NULL, -1, functions};

PyMODINIT_FUNC PyInit__kernel(void) {
    if (PyType_Ready(&FrameType) < 0 || (ours == NULL && (ours = PyUnicode_InternFromString("OBJS")) == NULL))
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Frame", (PyObject *)&FrameType) < 0)
        Py_CLEAR(made);
    return made;
}
