/* What is done with every small message over TLS, in C: one record is made and sent, or received and opened.

   Everything here exists in Python too, in channel.py, which uses this module where it has been compiled, and
   which does whatever is not one whole record.  OpenSSL is Python's own: it is only called, by methods of
   Python objects that channel.py has put here.  The socket is the kernel's: between two calls of OpenSSL the
   system call is nearly all there is to do, and Python's way to it takes half as long again.
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <pythread.h>
#include <structmember.h>
#include <sys/socket.h>

#define RECORD 16384
#define OVERHEAD 22
#define SMALL 8192

static PyObject *want_read = NULL, *zero_return = NULL;
static PyObject *name_rest = NULL, *name_left_over = NULL, *name_send_pieces = NULL, *name_send_all_pieces = NULL,
                *name_owe = NULL;

typedef struct {
    PyObject_HEAD
    PyThread_type_lock lock;
    PyObject *receive, *transmit, *transmit_all, *feed, *encrypted, *read, *write, *owed;
    Py_ssize_t uncounted;
    int fd; /* of a socket that blocks in the kernel or not at all; -1: there is none, ask the methods */
    char left;
} Records;

static PyMemberDef members[] = {
    {"_recv", T_OBJECT_EX, offsetof(Records, receive), 0, NULL},
    {"_send", T_OBJECT_EX, offsetof(Records, transmit), 0, NULL},
    {"_sendall", T_OBJECT_EX, offsetof(Records, transmit_all), 0, NULL},
    {"_feed", T_OBJECT_EX, offsetof(Records, feed), 0, NULL},
    {"_encrypted", T_OBJECT_EX, offsetof(Records, encrypted), 0, NULL},
    {"_read", T_OBJECT_EX, offsetof(Records, read), 0, NULL},
    {"_write", T_OBJECT_EX, offsetof(Records, write), 0, NULL},
    {"_owed", T_OBJECT_EX, offsetof(Records, owed), 0, NULL},
    {"_uncounted", T_PYSSIZET, offsetof(Records, uncounted), 0, NULL},
    {"_fd", T_INT, offsetof(Records, fd), 0, NULL},
    {"_left", T_BOOL, offsetof(Records, left), 0, NULL},
    {NULL}};

static PyObject *records_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Records *self = (Records *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->fd = -1;
    self->lock = PyThread_allocate_lock();
    self->owed = PyBytes_FromStringAndSize(NULL, 0);
    if (self->lock == NULL || self->owed == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void records_dealloc(Records *self) {
    if (self->lock != NULL)
        PyThread_free_lock(self->lock);
    Py_XDECREF(self->receive);
    Py_XDECREF(self->transmit);
    Py_XDECREF(self->transmit_all);
    Py_XDECREF(self->feed);
    Py_XDECREF(self->encrypted);
    Py_XDECREF(self->read);
    Py_XDECREF(self->write);
    Py_XDECREF(self->owed);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Wait for the turn of this thread; -1 if a signal handler has raised meanwhile. */
static int take(Records *self) {
    if (PyThread_acquire_lock(self->lock, NOWAIT_LOCK))
        return 0;
    for (;;) {
        PyLockStatus status;
        Py_BEGIN_ALLOW_THREADS;
        status = PyThread_acquire_lock_timed(self->lock, -1, 1);
        Py_END_ALLOW_THREADS;
        if (status == PY_LOCK_ACQUIRED)
            return 0;
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
}

static PyObject *acquire(Records *self, PyObject *const *args, Py_ssize_t nargs) {
    int waits = nargs == 0 ? 1 : PyObject_IsTrue(args[0]);
    if (waits < 0)
        return NULL;
    if (!waits)
        return PyBool_FromLong(PyThread_acquire_lock(self->lock, NOWAIT_LOCK));
    if (take(self) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

static PyObject *release(Records *self, PyObject *unused) {
    PyThread_release_lock(self->lock);
    Py_RETURN_NONE;
}

/* One of the methods that channel.py has put here, with up to one argument. */
static inline PyObject *call(PyObject *method, PyObject *argument) {
    if (method == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "not set up");
        return NULL;
    }
    return argument == NULL ? PyObject_CallNoArgs(method) : PyObject_CallOneArg(method, argument);
}

/* Whether encrypted bytes have to leave before any other. */
static inline int owes(Records *self) {
    return self->owed == NULL || PyObject_IsTrue(self->owed) != 0;
}

/* What the socket has, up to `size`; empty at its end. */
static PyObject *received(Records *self, PyObject *size) {
    Py_ssize_t asked = PyLong_AsSsize_t(size);
    if (asked == -1 && PyErr_Occurred())
        return NULL;
    if (self->fd < 0 || asked <= 0 || asked > SMALL) {
        PyObject *data = call(self->receive, size);
        if (data != NULL && !PyBytes_Check(data)) {
            PyErr_SetString(PyExc_TypeError, "what is received is bytes");
            Py_CLEAR(data);
        }
        return data;
    }
    char room[SMALL];
    for (;;) {
        ssize_t count;
        Py_BEGIN_ALLOW_THREADS;
        count = recv(self->fd, room, (size_t)asked, 0);
        Py_END_ALLOW_THREADS;
        if (count >= 0)
            return PyBytes_FromStringAndSize(room, count);
        if (errno != EINTR)
            return PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
}

/* Give the socket the bytes `out`, once, or until it has all of them; how many it took, or -1. */
static Py_ssize_t transmitted(Records *self, PyObject *out, int all) {
    if (!PyBytes_Check(out)) {
        PyErr_SetString(PyExc_TypeError, "what is encrypted is bytes");
        return -1;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(out), sent = 0;
    if (self->fd < 0) {
        PyObject *done = call(all ? self->transmit_all : self->transmit, out);
        if (done != NULL)
            sent = all ? size : PyLong_AsSsize_t(done);
        Py_XDECREF(done);
        return done == NULL ? -1 : sent;
    }
    do {
        ssize_t count;
        Py_BEGIN_ALLOW_THREADS;
        count = send(self->fd, PyBytes_AS_STRING(out) + sent, (size_t)(size - sent), MSG_NOSIGNAL);
        Py_END_ALLOW_THREADS;
        if (count >= 0)
            sent += count;
        else if (errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        } else if (PyErr_CheckSignals() < 0)
            return -1;
        else
            continue;
        if (!all)
            break;
    } while (sent < size);
    return sent;
}

/* recv(size, flags=0): see channel.py. */
static PyObject *records_recv(Records *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs == 2 && self->receive != NULL) {
        PyObject *both[3] = {NULL, args[0], args[1]};
        return PyObject_Vectorcall(self->receive, both + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    if (nargs != 1) {
        PyErr_SetString(PyExc_TypeError, "recv takes a size, and perhaps flags");
        return NULL;
    }
    for (;;) {
        PyObject *piece = NULL;
        if (self->left) {
            if (take(self) < 0)
                return NULL;
            self->left = 0;
            piece = PyObject_CallMethodNoArgs((PyObject *)self, name_left_over);
        } else {
            PyObject *data = received(self, args[0]);
            if (data == NULL || PyBytes_GET_SIZE(data) == 0)
                return data;
            if (take(self) < 0) {
                Py_DECREF(data);
                return NULL;
            }
            self->uncounted += PyBytes_GET_SIZE(data);
            PyObject *done = call(self->feed, data);
            Py_DECREF(data);
            if (done != NULL) {
                Py_DECREF(done);
                PyObject *room = PyLong_FromSsize_t(self->uncounted < RECORD ? self->uncounted : RECORD);
                if (room != NULL) {
                    piece = call(self->read, room);
                    Py_DECREF(room);
                }
            }
            if (piece != NULL && PyBytes_Check(piece)) {
                self->uncounted -= PyBytes_GET_SIZE(piece) + OVERHEAD;
                if (self->uncounted != 0)
                    Py_SETREF(piece, PyObject_CallMethodOneArg((PyObject *)self, name_rest, piece));
            } else if (piece == NULL && (PyErr_ExceptionMatches(want_read) || PyErr_ExceptionMatches(zero_return))) {
                PyErr_Clear();
                piece = PyObject_CallMethodNoArgs((PyObject *)self, name_left_over);
            }
        }
        PyThread_release_lock(self->lock);
        if (piece != Py_None)
            return piece;
        Py_DECREF(piece);
    }
}

/* The record of `data`, with the lock taken; NULL without it. */
static PyObject *encrypt(Records *self, PyObject *data) {
    PyObject *done = call(self->write, data);
    if (done == NULL)
        return NULL;
    Py_DECREF(done);
    return call(self->encrypted, NULL);
}

/* send(data, flags=0): see channel.py. */
static PyObject *records_send(Records *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs < 1 || nargs > 2) {
        PyErr_SetString(PyExc_TypeError, "send takes data, and perhaps flags");
        return NULL;
    }
    Py_ssize_t size = PyObject_Size(args[0]);
    if (size < 0 || take(self) < 0)
        return NULL;
    PyObject *result = NULL;
    if (nargs == 2 || size == 0 || size > RECORD || owes(self)) {
        PyObject *both[3] = {(PyObject *)self, args[0], nargs == 2 ? args[1] : NULL};
        result = PyObject_VectorcallMethod(name_send_pieces, both, nargs + 1, NULL);
    } else {
        PyObject *out = encrypt(self, args[0]);
        if (out != NULL) {
            Py_ssize_t sent = transmitted(self, out, 0);
            if (sent < 0 && (PyErr_ExceptionMatches(PyExc_BlockingIOError) ||
                             PyErr_ExceptionMatches(PyExc_InterruptedError))) {
                PyErr_Clear();
                sent = 0;
            }
            if (sent >= 0 && sent == PyBytes_GET_SIZE(out))
                result = PyLong_FromSsize_t(size);
            else if (sent >= 0) {
                PyObject *from = PyLong_FromSsize_t(sent), *begun = PyLong_FromSsize_t(size);
                if (from != NULL && begun != NULL)
                    result = PyObject_CallMethodObjArgs((PyObject *)self, name_owe, out, from, begun, NULL);
                Py_XDECREF(from);
                Py_XDECREF(begun);
            }
            Py_DECREF(out);
        }
    }
    PyThread_release_lock(self->lock);
    return result;
}

/* sendall(data): see channel.py. */
static PyObject *records_sendall(Records *self, PyObject *data) {
    Py_ssize_t size = PyObject_Size(data);
    if (size < 0 || take(self) < 0)
        return NULL;
    PyObject *result = NULL;
    if (size > RECORD || owes(self))
        result = PyObject_CallMethodOneArg((PyObject *)self, name_send_all_pieces, data);
    else {
        PyObject *out = encrypt(self, data);
        if (out != NULL) {
            if (transmitted(self, out, 1) >= 0)
                result = Py_NewRef(Py_None);
            Py_DECREF(out);
        }
    }
    PyThread_release_lock(self->lock);
    return result;
}

static PyMethodDef methods[] = {
    {"recv", (PyCFunction)(void (*)(void))records_recv, METH_FASTCALL, NULL},
    {"send", (PyCFunction)(void (*)(void))records_send, METH_FASTCALL, NULL},
    {"sendall", (PyCFunction)records_sendall, METH_O, NULL},
    {"_acquire", (PyCFunction)(void (*)(void))acquire, METH_FASTCALL, NULL},
    {"_release", (PyCFunction)release, METH_NOARGS, NULL},
    {NULL}};

static PyTypeObject RecordsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "objserver.security._records.Records",
    .tp_basicsize = sizeof(Records),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = records_new,
    .tp_dealloc = (destructor)records_dealloc,
    .tp_members = members,
    .tp_methods = methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "objserver.security._records", NULL, -1, NULL};

static int prepare(void) {
    if (name_owe != NULL)
        return 0;
    PyObject *ssl = PyImport_ImportModule("ssl");
    if (ssl == NULL)
        return -1;
    want_read = PyObject_GetAttrString(ssl, "SSLWantReadError");
    zero_return = PyObject_GetAttrString(ssl, "SSLZeroReturnError");
    Py_DECREF(ssl);
    name_rest = PyUnicode_InternFromString("_rest");
    name_left_over = PyUnicode_InternFromString("_decrypted");
    name_send_pieces = PyUnicode_InternFromString("_send_pieces");
    name_send_all_pieces = PyUnicode_InternFromString("_send_all_pieces");
    name_owe = PyUnicode_InternFromString("_owe");
    return want_read && zero_return && name_rest && name_left_over && name_send_pieces && name_send_all_pieces &&
                   name_owe
               ? 0
               : -1;
}

PyMODINIT_FUNC PyInit__records(void) {
    if (prepare() < 0 || PyType_Ready(&RecordsType) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Records", (PyObject *)&RecordsType) < 0)
        Py_CLEAR(made);
    return made;
}
