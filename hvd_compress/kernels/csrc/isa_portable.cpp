#define HVD_ISA "portable"
#define HVD_LINE "line_portable.hpp"
#include "isa.hpp"

const hvd::Table* hvd::table_portable() { return &hvd::TABLE; }
