/* WIDEST: a function's loops in the widest registers that the machine turns out to have. A file that defines NEEDS_FMA is not
   compiled where they would be those of the first x86-64, in which torch's own loops are faster. */

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#if defined(NEEDS_FMA) && defined(__x86_64__) && !defined(__FMA__)
#error "in the registers of the first x86-64 torch's own loops are faster"
#endif
#endif
