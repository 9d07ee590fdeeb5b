// Numbers as sums of two doubles, for statistics of f64 that are to be as exact as f64 is.
#pragma once
#include "params.cuh"

struct Twofold {
  double high, low;

  DEVICE Twofold() {}
  DEVICE Twofold(double high, double low = 0) : high(high), low(low) {}
  DEVICE explicit operator double() const { return high + low; }

  // What rounding took from a result; nothing is known of that where the result is infinite.
  static DEVICE double rest(double x) { return x == x ? x : 0; }
  // a + b where |a| >= |b|.
  static DEVICE Twofold ordered_sum(double a, double b) {
    double sum = a + b;
    return {sum, rest(b - (sum - a))};
  }
  static DEVICE Twofold sum(double a, double b) {
    double sum = a + b, of_b = sum - a;
    return {sum, rest((a - (sum - of_b)) + (b - of_b))};
  }
};

DEVICE Twofold operator+(Twofold a, Twofold b) {
  Twofold high = Twofold::sum(a.high, b.high), low = Twofold::sum(a.low, b.low);
  high = Twofold::ordered_sum(high.high, high.low + low.high);
  return Twofold::ordered_sum(high.high, high.low + low.low);
}
DEVICE Twofold operator-(Twofold a, Twofold b) { return a + Twofold(-b.high, -b.low); }
DEVICE Twofold operator*(Twofold a, Twofold b) {
  double product = a.high * b.high;
  double rest = __fma_rn(a.high, b.high, -product) + (a.high * b.low + a.low * b.high);
  return Twofold::ordered_sum(product, Twofold::rest(rest));
}
DEVICE void operator+=(Twofold& a, Twofold b) { a = a + b; }
DEVICE void operator*=(Twofold& a, Twofold b) { a = a * b; }
