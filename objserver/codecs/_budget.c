/* The walk through MessagePack that tells what decoding it would cost, in C.

   It is budget.py's _walk step by step, and used in its place where it has been compiled: a message of some
   kilobytes is walked through at every call that has one. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

enum { FINE, TOO_SHORT, WRONG_EXT, NO_VALUE, TOO_LARGE, TOO_DEEP, WRONG_KEY };
enum { PLAIN, NESTED, OBJECT };

typedef struct {
    uint64_t left, end;
    int bounded, keyed;
} Open;

static uint64_t number(const unsigned char *at, int width) {
    uint64_t value = 0;
    while (width--)
        value = value << 8 | *at++;
    return value;
}

/* How it ends, the byte that it ended at, and what it costs.  `costs` are those of a slot, a scalar, a container, an item of a
   dict and an object; `kinds` says of each Ext tag what its data is. */
static int walk(const unsigned char *data, uint64_t size, uint64_t nesting_max, uint64_t cost_max,
                const uint64_t *costs, const unsigned char *kinds, Open *opened, int *last, uint64_t *cost_of_all) {
    const uint64_t slot = costs[0], scalar = costs[1], container = costs[2], item = costs[3], object = costs[4];
    uint64_t position = 0, cost = 0, left = 1, end = 0, depth = 0;
    int bounded = 0, keyed = 0;
    for (;;) {
        while (left == 0) {
            if (bounded && position != end)
                return WRONG_EXT;
            if (depth == 0) {
                *cost_of_all = cost;
                return FINE;
            }
            depth--;
            left = opened[depth].left, end = opened[depth].end;
            bounded = opened[depth].bounded, keyed = opened[depth].keyed;
        }
        left--;
        if (position >= size)
            return TOO_SHORT;
        int byte = data[position++];
        *last = byte;
        int is_map = (byte >= 0x80 && byte < 0x90) || byte == 0xDE || byte == 0xDF;
        if (keyed && left & 1 && (is_map || (byte >= 0x90 && byte < 0xA0) || byte == 0xDC || byte == 0xDD))
            return WRONG_KEY;
        uint64_t many = 0, inside = 0, length;
        int goes_in = 0, width = 0;
        if (byte < 0x80 || byte == 0xC0 || byte == 0xC2 || byte == 0xC3) {
            cost += slot;
        } else if (byte >= 0xE0) {
            cost += scalar;
        } else if (byte < 0x90) {
            many = (uint64_t)(byte & 15) * 2;
            cost += container + many / 2 * item;
        } else if (byte < 0xA0) {
            many = byte & 15;
            cost += container;
        } else if (byte < 0xC0) {
            position += byte & 31;
            cost += scalar + 31;
        } else {
            switch (byte) {
            case 0xCC: case 0xD0: position += 1; cost += scalar; break;
            case 0xCD: case 0xD1: position += 2; cost += scalar; break;
            case 0xCA: case 0xCE: case 0xD2: position += 4; cost += scalar; break;
            case 0xCB: case 0xCF: case 0xD3: position += 8; cost += scalar; break;
            case 0xC4: case 0xD9: width = 1; goto blob;
            case 0xC5: case 0xDA: width = 2; goto blob;
            case 0xC6: case 0xDB: width = 4;
            blob:
                if (size - position < (uint64_t)width)
                    return TOO_SHORT;
                length = number(data + position, width);
                position += width + length;
                cost += scalar + 24 + length;
                break;
            case 0xDC: case 0xDE: width = 2; goto many;
            case 0xDD: case 0xDF: width = 4;
            many:
                if (size - position < (uint64_t)width)
                    return TOO_SHORT;
                many = number(data + position, width);
                position += width;
                cost += container;
                if (byte >= 0xDE) {
                    cost += many * item;
                    many *= 2;
                }
                if (many > size - position)
                    return TOO_SHORT;
                break;
            case 0xD4: case 0xD5: case 0xD6: case 0xD7: case 0xD8:
                length = (uint64_t)1 << (byte - 0xD4);
                goto ext;
            case 0xC7: width = 1; goto long_ext;
            case 0xC8: width = 2; goto long_ext;
            case 0xC9: width = 4;
            long_ext:
                if (size - position < (uint64_t)width)
                    return TOO_SHORT;
                length = number(data + position, width);
                position += width;
            ext:
                if (position >= size)
                    return TOO_SHORT;
                switch (kinds[data[position++]]) {
                case OBJECT: cost += object + length; position += length; break;
                case NESTED:
                    cost += container + length;
                    many = 1, goes_in = 1, inside = position + length;
                    break;
                default: cost += container + length; position += length;
                }
                break;
            default:
                return NO_VALUE;
            }
        }
        if (position > size || inside > size)
            return TOO_SHORT;
        if (cost > cost_max)
            return TOO_LARGE;
        if (many || goes_in) {
            if (depth >= nesting_max)
                return TOO_DEEP;
            opened[depth].left = left, opened[depth].end = end;
            opened[depth].bounded = bounded, opened[depth].keyed = keyed;
            depth++;
            left = many, end = inside, bounded = goes_in, keyed = is_map;
        }
    }
}

/* measure(data, nesting_max, cost_max, costs, kinds) -> (how it ends, the last head byte, its cost) */
static PyObject *measure(PyObject *module, PyObject *args) {
    Py_buffer data, kinds;
    unsigned long long nesting_max, cost_max, costs[5];
    if (!PyArg_ParseTuple(args, "y*KK(KKKKK)y*", &data, &nesting_max, &cost_max, &costs[0], &costs[1], &costs[2],
                          &costs[3], &costs[4], &kinds))
        return NULL;
    PyObject *answer = NULL;
    Open *opened = NULL;
    uint64_t values[5] = {costs[0], costs[1], costs[2], costs[3], costs[4]};
    int last = 0;
    if (kinds.len != 256)
        PyErr_SetString(PyExc_ValueError, "there are 256 tags");
    else if (nesting_max > 1000000)
        PyErr_SetString(PyExc_OverflowError, "nobody nests a million deep");
    else if ((opened = PyMem_Malloc((nesting_max + 1) * sizeof(Open))) == NULL)
        PyErr_NoMemory();
    else {
        uint64_t cost = 0;
        int ended = walk(data.buf, (uint64_t)data.len, nesting_max, cost_max, values, kinds.buf, opened, &last, &cost);
        answer = Py_BuildValue("iiK", ended, last, (unsigned long long)cost);
    }
    PyMem_Free(opened);
    PyBuffer_Release(&data);
    PyBuffer_Release(&kinds);
    return answer;
}

static PyMethodDef functions[] = {{"measure", measure, METH_VARARGS, NULL}, {NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "objserver.codecs._budget", NULL, -1, functions};

PyMODINIT_FUNC PyInit__budget(void) { return PyModule_Create(&module); }
