@0xbf1e2c5d94a7d3f1;

interface Adder {
  add @0 (a :Int64, b :Int64) -> (sum :Int64);
}
