// A kernel's call has one list of fields. It makes the C++ struct, what the Python binding fills by name
// (csrc/bindings.cpp), and what the emulator's tests fill by name (tests/emulator/emulate.py reads the list itself).
#pragma once

#define DLLM_DECLARE_FIELD(type, name) type name;
#define DLLM_VISIT_FIELD(type, name) visit(#name, name);

// A struct of the list's fields; each_field(visit) calls visit(name, field) for each.
#define DLLM_CALL(Name, FIELDS)          \
    struct Name {                        \
        FIELDS(DLLM_DECLARE_FIELD)       \
        template <typename Visit>        \
        void each_field(Visit&& visit) { \
            FIELDS(DLLM_VISIT_FIELD)     \
        }                                \
    };
