/* What the processor can do. */
#ifndef SECATEUR_CPU_H
#define SECATEUR_CPU_H

#if defined(__x86_64__)
#include <cpuid.h>

/* The level of the x86-64 psABI (3: AVX2, 4: AVX-512) that the processor and the system offer. */
static int cpu_level(void) {
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 1;
  const unsigned v3 = bit_FMA | bit_MOVBE | bit_OSXSAVE | bit_AVX | bit_F16C;
  if ((c & v3) != v3) return 1;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 1;
  const unsigned v3b = bit_BMI | bit_AVX2 | bit_BMI2;
  if ((b & v3b) != v3b) return 1;
  const unsigned v4 = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
  return (b & v4) == v4 && (low & 0xe6) == 0xe6 ? 4 : 3;
}

#endif

#endif
