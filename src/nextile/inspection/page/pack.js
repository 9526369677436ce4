// Arrays as they come packed in the payload: numbers in base64, with a shape.

/** An array of numbers with a shape, row by row. */
export class Grid {
  constructor(shape, data) {
    this.shape = shape;
    this.data = data;
    this.strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((product, each) => product * each, 1));
  }

  place(places) {
    let start = 0;
    for (let axis = 0; axis < places.length; axis++) start += places[axis] * this.strides[axis];
    return start;
  }

  /** What stands at the first axes' places: a smaller one that shares the numbers. */
  at(...places) {
    const start = this.place(places);
    return new Grid(this.shape.slice(places.length), this.data.subarray(start, start + this.strides[places.length - 1]));
  }

  /** The numbers of a row. */
  row(index) {
    return this.data.subarray(index * this.strides[0], (index + 1) * this.strides[0]);
  }

  /** One number. */
  value(...places) {
    return this.data[this.place(places)];
  }
}

const TYPES = { f4: Float32Array, u4: Uint32Array, u2: Uint16Array, bits: Uint8Array };
const STEPS = 65535;

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) found[place] = raw.charCodeAt(place);
  return found.buffer;
}

/** The lower triangles of squares, as whole squares. */
function squares(numbers, shape) {
  const size = shape.at(-1);
  const data = new Float32Array(shape.reduce((product, each) => product * each, 1));
  let from = 0;
  for (let row = 0; row < data.length / size; row++) {
    const seen = (row % size) + 1;
    for (let place = 0; place < seen; place++) data[row * size + place] = numbers[from++] / STEPS;
  }
  return data;
}

function shares(numbers, { shape, lower }) {
  return lower ? squares(numbers, shape) : Float32Array.from(numbers, (each) => each / STEPS);
}

function flags(packed, { shape }) {
  const size = shape.reduce((product, each) => product * each, 1);
  return Uint8Array.from({ length: size }, (_, place) => (packed[place >> 3] >> (place & 7)) & 1);
}

/** The array that was packed; null where there is none. */
export function unpack(packed) {
  if (!packed) return null;
  const numbers = new TYPES[packed.type](bytes(packed.data));
  if (packed.type === "u2") return new Grid(packed.shape, shares(numbers, packed));
  return new Grid(packed.shape, packed.type === "bits" ? flags(numbers, packed) : numbers);
}
