/* The two things that are done with every plain frame, in C: taking it apart and putting it together.

   Everything here exists in Python too, in frames.py, which uses this module where it has been compiled.  It
   sees bytes only: no socket, no clock.  A plain frame has no annotations and no correlation id; its header is

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

static PyMethodDef functions[] = {
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
